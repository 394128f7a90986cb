"""What was answered, in an append-only file that a power cut cannot spoil.

A record is a line of JSON whose last key is the CRC-32 of everything before it; records are numbered
without a gap. One record holds the answers and how far the input was read for them, so that neither is ever
there without the other. It counts once it is on the disk: the line that was being written when the power
went is cut off at the next start, and the input is read again from where the record before it ended.

The order is that of the numbers. No clock is asked.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.files import sync_folder
from validation.errors import InputError

Record = dict[str, Any]
SEGMENT_BYTES = 16 << 20
PERIOD = 256
"""Records that are summed up together (pipelines.edge.metrics); a segment ends where a period does."""


class Journal:
    """The segments in a folder. One process writes; any may read."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Cut what a power cut left unfinished. Raises InputError where a whole record was damaged."""
        self._folder, self._segment_bytes = folder, segment_bytes
        make_folder(folder)
        segments = _segments(folder)
        while segments and not _cut_torn_tail(segments[-1]) and len(segments) > 1:
            segments.pop().unlink()  # begun, and nothing in it yet
            sync_folder(folder)
        self._path = segments[-1] if segments else folder / _name(1)
        first = int(self._path.stem)
        records = list(_records(self._path)) if segments else []
        self.last = records[-1]["n"] if records else first - 1
        """Number of the last record; 0 before the first."""
        self._file = _open(self._path, folder)
        self._length = self._file_size()

    def append(self, record: Record) -> Record:
        """Write a record and wait until it is on the disk. It is there when this returns, or not at all.

        Raises OSError where the disk is full or fails; nothing of the record is left then.
        """
        numbered = {"n": self.last + 1, **record}
        line = seal(numbered)
        try:
            _write_all(self._file, line)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._length)
            raise
        self._length += len(line)
        self.last += 1
        return numbered

    def is_segment_full(self) -> bool:
        """Whether the next record may begin a new segment, and should."""
        return self._length >= self._segment_bytes and self.last % PERIOD == 0

    def begin_segment(self) -> None:
        """The next record goes to a new file."""
        os.close(self._file)
        self._path = self._folder / _name(self.last + 1)
        self._file = _open(self._path, self._folder)
        self._length = 0

    def drop_oldest(self, keep_bytes: int) -> int:
        """Remove whole segments, oldest first, until at most `keep_bytes` are left; how many went."""
        segments, dropped = _segments(self._folder), 0
        sizes = [path.stat().st_size for path in segments]
        while len(segments) - dropped > 1 and sum(sizes[dropped:]) > keep_bytes:
            segments[dropped].unlink()
            dropped += 1
        return dropped

    def close(self) -> None:
        os.close(self._file)

    def _file_size(self) -> int:
        return os.fstat(self._file).st_size


def read_journal(folder: Path, after: int = 0) -> Iterator[Record]:
    """Records with a number above `after`, in order, also while another process writes.

    Raises InputError for a record that was damaged after it was written, and where some are missing.
    """
    segments = _segments(folder)
    begin = [path for path in segments if int(path.stem) <= after + 1][-1:] or segments[:1]
    expected = None
    for path in segments[segments.index(begin[0]) :] if begin else []:
        for record in _records(path):
            if expected is not None and record["n"] != expected:
                raise InputError(f"{path}: record {expected} is missing; restore the folder")
            expected = record["n"] + 1
            if record["n"] > after:
                yield record


def read_back(folder: Path) -> Iterator[Record]:
    """Records from the newest to the oldest, also while another process writes; parses no more than is asked.

    Raises InputError for a record that was damaged after it was written.
    """
    for path in reversed(_segments(folder)):
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1  # what lies behind is being written just now, or never finished
        while end:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            record = unseal(content[begin:end])
            if record is None:
                raise InputError(f"{path}: damaged on the disk before byte {end}; restore the file")
            yield record
            end = begin


def seal(record: Record) -> bytes:
    """A line of JSON that ends with the CRC-32 of what stands before it."""
    body = json.dumps(record, separators=(",", ":"))[:-1].encode()
    return b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def unseal(line: bytes) -> Record | None:
    """The record in a line, None where it is not whole."""
    body, mark, crc = line.rpartition(b',"crc":"')
    if not mark or crc != b'%08x"}\n' % zlib.crc32(body):
        return None
    return json.loads(body + b"}")


def _records(path: Path) -> Iterator[Record]:
    """The whole records of a segment; an unfinished last line is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if record := unseal(line):
                yield record
            elif not line.endswith(b"\n"):
                return  # being written just now, or never finished
            elif file.readline():
                raise InputError(f"{path}: line {number} was damaged on the disk; restore the file")


def _cut_torn_tail(path: Path) -> bool:
    """Cut the line that was not finished, if there is one; whether a record is left."""
    length, has_record = 0, False
    with path.open("r+b") as file:
        for line in file:
            if unseal(line) is None:
                break
            length, has_record = length + len(line), True
        if file.read(1):  # whole records behind it: no power cut does that
            raise InputError(f"{path}: damaged on the disk after byte {length}; restore the file")
        if length < path.stat().st_size:
            file.truncate(length)
            os.fsync(file.fileno())
    return has_record


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def _name(first: int) -> str:
    return f"{first:012d}.jsonl"


def _open(path: Path, folder: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sync_folder(folder)
    return descriptor


def make_folder(folder: Path) -> None:
    """A folder, and every one above it that was missing, that survive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
