"""Files that are whole or absent, and locks that die with their process."""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from validation.errors import InputError


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write `path` so that a reader, or a power cut, sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_drafts(folder: Path, name: str = "") -> None:
    """What processes that were killed in `replace_file` left, of one file or of every one in a folder.

    Only for who alone writes there.
    """
    for path in folder.glob(f".{name}*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold `path` locked. The kernel frees it when the process dies, so no stale lock can remain.

    Raises InputError when `wait` is False and another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is at work here; wait for it to end") from None
        yield


def wait_for_lock(file: int, operation: int, path: Path, seconds: float) -> None:
    """flock the open `file`, giving up after `seconds`. Raises InputError naming who holds it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = _holder(file)
                raise InputError(
                    f"{path}: {holder} has held it for over {seconds:g} s; end that process or try again"
                ) from None
            time.sleep(0.005)


def _holder(file: int) -> str:
    """The process that the kernel says holds a lock on the file."""
    inode = os.fstat(file).st_ino
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
    except OSError:
        locks = []
    holders = [lock[4] for lock in locks if lock[5].endswith(f":{inode}")]
    return f"process {holders[0]}" if holders else "another process"


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
