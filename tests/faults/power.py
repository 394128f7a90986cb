"""Power cuts, simulated: what a disk holds when the power goes is what was synced.

Within `PowerCut.recording()` every fsync, rename and removal below one folder is noted. An image of the
disk is what would be found after a cut at that instant: files as they were last fsynced, under the names
that their folder was last fsynced with; of a file that was appended to since, any prefix.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest


class Image(NamedTuple):
    """The disk at one instant: content by relative path, for each inode under its durable name."""

    step: str
    files: dict[str, bytes]
    folders: tuple[str, ...]

    def write(self, place: Path) -> Path:
        """The folder as it would be found."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for folder in sorted(self.folders):
            (place / folder).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return place


class PowerCut:
    """Follows what of `root` is durable. Only calls through `os` are seen, which is how the package syncs."""

    def __init__(self, root: Path) -> None:
        self.root, self.images = root, []
        self._content: dict[int, bytes] = {}
        self._entries: dict[str, dict[str, tuple[int, bool]]] = {}
        self._keep_all()

    def _keep_all(self) -> None:
        """What lies below the root now was there long before."""
        for folder, _, names in os.walk(self.root):
            self._keep(Path(folder))
            for name in names:
                path = Path(folder) / name
                self._content[path.stat().st_ino] = path.read_bytes()

    @contextmanager
    def recording(self) -> Iterator["PowerCut"]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("fsync", "replace", "rename", "unlink", "ftruncate"):
                patch.setattr(os, name, self._watched(name, getattr(os, name)))
            yield self

    def _watched(self, name: str, real: Callable) -> Callable:
        def call(*arguments: object, **named: object) -> object:
            result = real(*arguments, **named)
            if name == "fsync":
                self._sync(arguments[0])  # type: ignore[arg-type]
            elif name in ("replace", "rename"):
                self._follow(str(arguments[0]), str(arguments[1]))
            self.images.append(self._image(name))
            return result

        return call

    def _sync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir() and path.is_relative_to(self.root):
            self._keep(path)
        elif path.is_relative_to(self.root):
            self._content[os.fstat(descriptor).st_ino] = path.read_bytes()

    def _follow(self, before: str, after: str) -> None:
        """A folder that was renamed keeps what is in it."""
        inside = {path: found for path, found in self._entries.items() if f"{path}/".startswith(f"{before}/")}
        self._entries |= {after + path[len(before) :]: found for path, found in inside.items()}

    def _keep(self, folder: Path) -> None:
        """The names that a folder has now are durable."""
        found = {each.name: (each.inode(), each.is_dir(follow_symlinks=False)) for each in os.scandir(folder)}
        self._entries[str(folder)] = found

    def _image(self, step: str) -> Image:
        files, folders = {}, []

        def walk(folder: Path) -> None:
            for name, (inode, is_folder) in self._entries.get(str(folder), {}).items():
                path = folder / name
                relative = str(path.relative_to(self.root))
                if is_folder:
                    folders.append(relative)
                    walk(path)
                else:
                    files[relative] = self._content.get(inode, b"")

        walk(self.root)
        return Image(step, files, tuple(folders))
