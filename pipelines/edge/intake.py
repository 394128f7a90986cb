"""Lines from files, folders and standard input, and what each of them says.

A row is a JSON object on a line of its own: `time` (ISO text; UTC where it names no zone), `entity`
(optional: which of several series it belongs to) and every field the model was trained on, null where it is
unknown. The outcome of an event may be left out. Keys may come in any order.
"""

import json
import os
import select
import sys
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipelines.edge.rows import Fields, Reading, read_row
from validation.errors import InputError

STDIN = "-"
MAX_LINE_BYTES = 1 << 20
"""A longer line is answered with an error; its rest is read and forgotten, so that memory stays bounded."""
_POLL_SECONDS = 0.2
_SUFFIXES = (".jsonl", ".json")


class Line(NamedTuple):
    """One line of input."""

    file: str
    number: int
    """From 1."""
    end: int
    """Bytes of the file up to and with it."""
    content: bytes
    is_cut: bool = False
    """It was longer than MAX_LINE_BYTES."""

    @property
    def check(self) -> int:
        return zlib.crc32(self.content)


class Position(NamedTuple):
    """How far a file was read."""

    end: int = 0
    line: int = 0
    check: int = 0
    """CRC-32 of the last line that was taken: another file of the same name shows."""


class Row(NamedTuple):
    """A row that can be scored."""

    entity: str
    time: str
    reading: Reading
    file: str
    line: int


def parse(line: Line, fields: Fields, ignored: Collection[str] = ()) -> Row:
    """Raises ValueError that says which field is missing, one too many, twice there or unreadable."""
    if line.is_cut:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    row = _object(line.content)
    needed = {"time", *fields.numbers, *fields.texts}
    if missing := needed - row.keys():
        raise ValueError(f"{min(missing)}: missing; write null where it is unknown")
    if extra := row.keys() - needed - {"entity", fields.outcome, *ignored}:
        raise ValueError(f"{min(extra)}: not a field of this model; leave it out or pass --ignore")
    entity = row.get("entity")
    if not isinstance(entity, str | None):
        raise ValueError("entity: give text")
    return Row(entity or "", str(row["time"]), read_row(row, fields), line.file, line.number)


def _object(content: bytes) -> dict[str, Any]:
    try:
        row = json.loads(content, object_pairs_hook=_once, parse_constant=_no_number)
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a row of JSON ({type(error).__name__})") from None
    if not isinstance(row, dict):
        raise ValueError("not a row of JSON: expected {…}")
    return row


class _Refused(ValueError):
    """JSON that Python reads and we do not."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Refused(f"{max(names, key=names.count)}: given twice")
    return found


def _no_number(text: str) -> None:
    raise _Refused(f"{text} is not JSON; write null where a value is unknown")


# Where lines come from ----------------------------------------------------------------------------


def read_lines(source: str, taken: Mapping[str, Position], follow: bool) -> Iterator[Line | None]:
    """Lines of a file, of a folder's files in order of name, or of standard input (`-`) that are not `taken`.

    None whenever there is nothing to read just now. With `follow` it goes on where the input ends, for ever.
    Raises InputError where the source is not there, or is not what was taken before.
    """
    if source == STDIN:
        yield from _stdin_lines(taken.get(STDIN, Position()))
        return
    now = dict(taken)
    while True:
        for path in _files(Path(source)):
            for line in file_lines(path, now.get(path.name, Position()), is_growing=follow):
                now[line.file] = Position(line.end, line.number, line.check)
                yield line
        yield None
        if not follow:
            return
        time.sleep(_POLL_SECONDS)


def file_lines(path: Path, since: Position, is_growing: bool = False) -> Iterator[Line]:
    """Lines of a file after `since`; of a growing one, those that are finished."""
    with path.open("rb") as file:
        if not _goes_on(file, since):
            raise InputError(f"{path}: not the file that was read before; give new rows a new name")
        file.seek(since.end)
        end, number = since.end, since.line
        while content := file.readline(MAX_LINE_BYTES + 1):
            content, read, is_cut = _whole(file, content)
            if is_growing and not content.endswith(b"\n") and not is_cut:
                return
            end, number = end + read, number + 1
            yield Line(path.name, number, end, content.strip(), is_cut)


def _goes_on(file: BinaryIO, since: Position) -> bool:
    """Whether the file still ends, where it was left, with the line that was taken last."""
    if os.fstat(file.fileno()).st_size < since.end:
        return False
    length = min(since.end, MAX_LINE_BYTES + 1)
    file.seek(since.end - length)
    *_, last = file.read(length).removesuffix(b"\n").rsplit(b"\n", 1)
    is_whole = length == since.end or len(last) < length - 1
    return not since.end or not is_whole or zlib.crc32(last.strip()) == since.check


def _whole(file: BinaryIO, content: bytes) -> tuple[bytes, int, bool]:
    """A line, how many bytes it took, and whether it was too long to keep."""
    if len(content) <= MAX_LINE_BYTES or content.endswith(b"\n"):
        return content, len(content), False
    read, more = len(content), content
    while not more.endswith(b"\n") and (more := file.readline(MAX_LINE_BYTES)):
        read += len(more)
    return content[:200], read, True


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    if not source.exists():
        raise InputError(f"{source}: no such file or folder of rows")
    return [source]


def _stdin_lines(taken: Position) -> Iterator[Line | None]:
    """A producer that starts anew sends the same lines again: those that were taken are passed over."""
    for line in _stream_lines(sys.stdin.fileno()):
        if line is not None and line.number == taken.line and line.check != taken.check:
            raise InputError(
                f"standard input: line {taken.line} is not the one that was taken before; start the producer "
                "from its first line, or give --device another folder"
            )
        if line is None or line.number > taken.line:
            yield line


def _stream_lines(descriptor: int) -> Iterator[Line | None]:
    number, end, buffer, cut = 0, 0, b"", 0
    while True:
        if not select.select([descriptor], [], [], _POLL_SECONDS)[0]:
            yield None
            continue
        chunk = os.read(descriptor, 1 << 16)
        *lines, buffer = (buffer + chunk).split(b"\n") if chunk else [*([buffer] if buffer else []), b""]
        for content in lines:
            number, end = number + 1, end + cut + len(content) + 1
            yield Line(STDIN, number, end, content.strip(), cut > 0 or len(content) > MAX_LINE_BYTES)
            cut = 0
        if len(buffer) > MAX_LINE_BYTES:
            cut, buffer = cut + len(buffer) - 200, buffer[:200]
        if not chunk:
            return
