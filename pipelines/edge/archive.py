"""A bundle as one file, and its careful unpacking: only what a bundle holds, none larger than allowed.

An entry's name is looked up among the few that may be there and never used as a path, so that none can lead
elsewhere; what an archive says about sizes is not believed, but bounds what is read.
"""

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines.edge.verification import FILES, MANIFEST, SIGNATURE, BundleError
from pipelines.files import replace_file, sync_folder

NAMES = FILES | {MANIFEST, SIGNATURE}
MAX_BYTES = 64 << 20
"""Of a bundle, packed or not: what the shipped policy allows (`bundle_bytes`)."""
_CHUNK = 1 << 16
_DATE = (1980, 1, 1, 0, 0, 0)  # equal bundles make equal archives


def pack(bundle: Path, to: Path) -> None:
    """Write the bundle in a folder as a zip file, whole or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(path.name for path in bundle.iterdir()):
                entry = zipfile.ZipInfo(name, _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, (bundle / name).read_bytes())
        replace_file(to, draft.read_bytes())
    finally:
        draft.unlink(missing_ok=True)


def unpack(source: Path, folder: Path, most_bytes: int = MAX_BYTES) -> None:
    """Copy a bundle, a folder or a zip file, into the new `folder`, and onto the disk.

    Verifies nothing but names and sizes. Raises BundleError for whatever is not the shape of a bundle.
    """
    folder.mkdir()
    left = most_bytes
    for name, opened in _folder_entries(source) if source.is_dir() else _zip_entries(source):
        if name not in NAMES or (folder / name).exists():
            raise BundleError(f"{source}: holds {name[:80]!r}, which is not part of a bundle")
        with opened, (folder / name).open("xb") as file:
            for chunk in _chunks(opened, source):
                left -= len(chunk)
                if left < 0:
                    raise BundleError(f"{source}: unpacks to more than {most_bytes} bytes; refused")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


def _chunks(opened: BinaryIO, source: Path) -> Iterator[bytes]:
    try:
        while chunk := opened.read(_CHUNK):
            yield chunk
    except Exception:  # zipfile's own, zlib's, and whatever a harmed number leads them to
        raise BundleError(f"{source}: damaged on its way; fetch it again") from None


def _folder_entries(source: Path) -> Iterator[tuple[str, BinaryIO]]:
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        try:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise BundleError(f"{entry.path}: {error.strerror}; a bundle holds plain files") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BundleError(f"{entry.path}: not a plain file")
        yield entry.name, os.fdopen(descriptor, "rb")


def _zip_entries(source: Path) -> Iterator[tuple[str, BinaryIO]]:
    try:
        archive = zipfile.ZipFile(source)
    except Exception:  # as in _chunks
        raise BundleError(f"{source}: not a whole bundle archive; fetch it again") from None
    with archive:
        entries = archive.infolist()
        if len(entries) > len(NAMES):
            raise BundleError(f"{source}: holds {len(entries)} entries, a bundle at most {len(NAMES)}")
        for entry in entries:
            # a name of nothing, too: some versions of zipfile stumble over it
            if not entry.filename or stat.S_ISLNK(entry.external_attr >> 16) or entry.is_dir():
                raise BundleError(f"{source}: {entry.filename[:80]!r} is not a plain file")
            yield entry.filename, _opened(archive, entry, source)


def _opened(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, source: Path) -> BinaryIO:
    try:
        return archive.open(entry)  # type: ignore[return-value]
    except Exception:  # encrypted, of an unknown method, or said to lie where no file has a place
        raise BundleError(f"{source}: {entry.filename[:80]!r} cannot be unpacked") from None
