"""Which bundle a device runs: putting another in its place, and going back.

A bundle is unpacked beside, verified, and has to answer its golden input on this very device, in time and
within memory, in processes of their own. Only then does `installed.json` name it, by one rename: whatever
is interrupted, the device has the old bundle or the new one. The one before is kept to go back to.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipelines.edge.archive import MAX_BYTES, unpack
from pipelines.edge.journal import make_folder
from pipelines.edge.metrics import Limits, is_above
from pipelines.edge.stores import free_bytes
from pipelines.edge.verification import MANIFEST, BundleError, read_bundle, refuse_other_machines
from pipelines.files import exclusive_lock, remove_drafts, replace_file, sync_folder
from pipelines.signing import public_pem, without_secrets
from validation.errors import InputError

PROCESSES = 3
"""Fresh ones of a self-test: as many peaks of memory as the shipped policy asks of a gate."""
REPEATS = 20
_SELF_TEST_SECONDS = 600
_DRAFT = ".unpacking-"
_ROOT = Path(__file__).resolve().parents[2]

Measured = dict[str, Any]
Measure = Callable[[Path, Ed25519PublicKey], list[Measured]]


class Installed(NamedTuple):
    """What a device runs, as `installed.json` says. Bundles are named RELEASE-HASH."""

    current: str = ""
    previous: str = ""
    """Kept to go back to."""
    highest: int = 0
    """Highest release that ever ran here."""
    refused: dict[str, str] = {}  # noqa: RUF012  (never changed, only replaced)
    """Bundles that failed here, and why: they do not come again."""
    self_test: list[Measured] = []  # noqa: RUF012
    """What the current one's self-test measured."""
    sequence: int = 0
    """Of the newest offer that was followed; older ones are replays."""
    limits: list[float] = []  # noqa: RUF012
    """That came with the offer; else the shipped policy's."""

    def bounds(self) -> Limits:
        return Limits(*self.limits) if self.limits else Limits()


def installed(device: Path) -> Installed:
    """What the device runs. Raises InputError where the note of it is damaged."""
    path = device / "installed.json"
    try:
        return Installed(**json.loads(path.read_bytes())) if path.exists() else Installed()
    except (ValueError, TypeError):
        raise InputError(f"{path}: damaged; remove it and update again") from None


def bundle_folder(device: Path, name: str) -> Path:
    return device / "bundles" / name


def install(
    device: Path,
    source: Path,
    key: Ed25519PublicKey,
    *,
    allow_rollback: bool = False,
    most_bytes: int = MAX_BYTES,
    limits: Limits | None = None,
    measure: Measure | None = None,
) -> Installed:
    """Put the bundle in `source`, a folder or a zip file, in the place of what the device runs.

    Raises BundleError or InputError, one line, where it must not run here: then nothing has changed.
    """
    with _updating(device):
        draft = bundle_folder(device, f"{_DRAFT}{os.getpid()}")
        try:
            _refuse_without_room(device, source)
            unpack(source, draft, most_bytes)
            manifest, _ = read_bundle(draft, key)
            now, name = installed(device), name_of(manifest, draft)
            if name == now.current:
                return now
            _refuse_unfit(manifest, name, now, allow_rollback)
            measured = (measure or self_test)(draft, key)
            _refuse_slow(name, measured, limits or now.bounds())
            _publish(draft, bundle_folder(device, name), key)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return switch(device, name, manifest["release"], measured)


def switch(device: Path, name: str, release: int, measured: list[Measured]) -> Installed:
    """Name another bundle as the one that runs; the one that did is the one to go back to."""
    now = installed(device)
    changed = now._replace(
        current=name,
        previous=now.current,
        highest=max(now.highest, release),
        self_test=measured,
    )
    _write(device, changed)
    _sweep(device, changed)
    return changed


def go_back(device: Path, reason: str) -> Installed:
    """To the bundle before, because of what the current one did live; the current one never comes again.

    Raises InputError where there is none to go back to.
    """
    with _updating(device):
        now = installed(device)
        if not now.previous:
            raise InputError(f"{now.current}: {reason}; there is no earlier bundle to go back to")
        changed = now._replace(
            current=now.previous, previous="", refused={**now.refused, now.current: reason}, self_test=[]
        )
        _write(device, changed)
        return changed


def remember(device: Path, sequence: int, limits: Limits, refused: Mapping[str, str] | None = None) -> None:
    """An offer was followed, or its bundle refused for good: older offers no longer count."""
    with _updating(device):
        now = installed(device)
        _write(
            device,
            now._replace(sequence=sequence, limits=list(limits), refused={**now.refused, **(refused or {})}),
        )


def name_of(manifest: dict[str, Any], folder: Path) -> str:
    """RELEASE-HASH. Raises BundleError for a bundle without a release number."""
    release = manifest.get("release")
    if type(release) is not int or release < 1:
        raise BundleError(f"{folder / MANIFEST}: has no release number; build it with this version")
    return f"{release}-{hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]}"


def self_test(folder: Path, key: Ed25519PublicKey) -> list[Measured]:
    """Golden input, latency and memory in fresh processes. Raises BundleError where one fails."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(public_pem(key))
        file.flush()
        return [_measured(folder, file.name) for _ in range(PROCESSES)]


def _measured(folder: Path, key_file: str) -> Measured:
    command = [sys.executable, "-m", "pipelines.edge.runtime", str(folder.resolve()), key_file]
    try:
        done = subprocess.run(
            [*command, str(REPEATS), "1"],
            capture_output=True,
            text=True,
            cwd=_ROOT,
            env=without_secrets(os.environ),
            timeout=_SELF_TEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BundleError(f"{folder.name}: no answer within {_SELF_TEST_SECONDS} s on this device") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        raise BundleError(last[0].partition("BundleError: ")[2] or f"{folder.name}: {last[0]}")
    return json.loads(done.stdout)


def _refuse_without_room(device: Path, source: Path) -> None:
    files = source.iterdir() if source.is_dir() else [source]
    size = sum(path.lstat().st_size for path in files)
    if free_bytes(device) < 2 * size:
        raise InputError(f"{source}: {size} bytes, and too little room in {device}; make room on the disk")


def _refuse_unfit(manifest: dict[str, Any], name: str, now: Installed, allow_rollback: bool) -> None:
    refuse_other_machines(name, manifest)
    if name in now.refused:
        raise BundleError(f"{name}: was refused here before: {now.refused[name]}")
    if manifest["release"] < now.highest and not allow_rollback:
        raise BundleError(f"{name}: older than release {now.highest}, which ran here; pass --allow-rollback")


def _refuse_slow(name: str, measured: list[Measured], limits: Limits) -> None:
    latencies = [ms for each in measured for ms in each["latency_ms"]]
    slow = sum(ms > limits.latency_p99_ms for ms in latencies)
    if is_above(slow, len(latencies), 0.01):
        found = f"{slow} of {len(latencies)} answers took over {limits.latency_p99_ms:g} ms"
        raise BundleError(f"{name}: {found} on this device")
    memory = max(each["peak_memory_bytes"] for each in measured)
    if memory > limits.peak_memory_bytes:
        allowed = f"{limits.peak_memory_bytes:.0f} are allowed"
        raise BundleError(f"{name}: takes {memory} bytes of memory on this device, {allowed}")


def _publish(draft: Path, folder: Path, key: Ed25519PublicKey) -> None:
    """Give the draft its name; the same bundle, kept to go back to, stays unless it was damaged."""
    if folder.exists():
        try:
            read_bundle(folder, key)
            return
        except BundleError:
            shutil.rmtree(folder)
    draft.rename(folder)
    sync_folder(folder.parent)


def _write(device: Path, state: Installed) -> None:
    replace_file(device / "installed.json", json.dumps(state._asdict(), indent=1).encode())


@contextmanager
def _updating(device: Path) -> Iterator[None]:
    make_folder(device / "bundles")
    with exclusive_lock(device / "update.lock"):
        _sweep(device, installed(device))
        yield


def _sweep(device: Path, state: Installed) -> None:
    """Remove every bundle but the last two, and what interrupted updates left."""
    remove_drafts(device, "installed.json")
    for path in (device / "bundles").iterdir():
        if path.name not in (state.current, state.previous):
            shutil.rmtree(path, ignore_errors=True)
