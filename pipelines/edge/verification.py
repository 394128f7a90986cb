"""Is this folder a bundle that the holder of a trusted key signed, whole and unaltered?

Standard library and cryptography alone: it runs on the device, before anything else is read.
"""

import base64
import hashlib
import json
import os
import platform
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
PURPOSE = "edge bundle"
FORMAT = 2
"""2 added the shape of the model, its precision, and what a device has to be for it."""
FILES = frozenset({"model.onnx", "preprocessing.json", "golden.npz"})
MAX_MANIFEST_BYTES = 1 << 20
MAX_BUNDLE_BYTES = 1 << 30
"""Refused before reading more: a device must not be filled by what it has not yet verified."""
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # Windows' and macOS's names for the same

Bundle = dict[str, bytes]


class BundleError(ValueError):
    """The bundle must not be used. One line: the file, what is wrong with it."""


def read_bundle(folder: Path, key: Ed25519PublicKey) -> tuple[dict[str, Any], Bundle]:
    """The verified manifest, and the verified content of every file in it by name.

    The bytes that were checked are the bytes that are returned, so a file swapped later does no harm.
    Raises BundleError on a missing, altered, truncated, oversized or unlisted file, a link, a name that
    is not one of FILES, or a signature that is not `key`'s.
    """
    manifest = _signed_manifest(folder, key)
    entries = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(entries, dict):
        raise BundleError(f"{folder / MANIFEST}: not a bundle of format {FORMAT}; build it with this version")
    if set(entries) != FILES:
        raise BundleError(f"{folder / MANIFEST}: lists {sorted(entries)}, a bundle holds {sorted(FILES)}")
    unlisted = {entry.name for entry in os.scandir(folder)} - {*FILES, MANIFEST, SIGNATURE}
    if unlisted:
        raise BundleError(f"{folder}: holds {min(unlisted)}, which is not part of a bundle")
    sizes = [entry.get("size_bytes") for entry in entries.values()]
    if not all(type(size) is int and size >= 0 for size in sizes) or sum(sizes) > MAX_BUNDLE_BYTES:
        raise BundleError(
            f"{folder / MANIFEST}: sizes {sizes} are not those of a bundle of {MAX_BUNDLE_BYTES} bytes"
        )
    return manifest, {name: _listed_file(folder / name, entry) for name, entry in entries.items()}


def _signed_manifest(folder: Path, key: Ed25519PublicKey) -> dict[str, Any]:
    content = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
    signature = _read(folder / SIGNATURE, 1024)
    try:
        key.verify(
            base64.b64decode(signature.strip(), validate=True), f"dankai {PURPOSE}\0".encode() + content
        )
    except (InvalidSignature, ValueError):
        raise BundleError(f"{folder / SIGNATURE}: not the trusted key's signature of {MANIFEST}") from None
    return json.loads(content)


def _listed_file(path: Path, entry: dict[str, Any]) -> bytes:
    content = _read(path, entry["size_bytes"])
    if len(content) != entry["size_bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BundleError(f"{path}: not the file that was signed; fetch the bundle again")
    return content


def _read(path: Path, most_bytes: int) -> bytes:
    """Content of a regular file. Never follows a link, never waits on a pipe, never reads past the limit."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; fetch the bundle again") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
            raise BundleError(f"{path}: {status.st_size} bytes, expected a file of at most {most_bytes}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes + 1)
    finally:
        os.close(descriptor)


def refuse_other_machines(name: str, manifest: Mapping[str, Any]) -> None:
    """Raise BundleError where the bundle was not made for this machine's architecture."""
    machine = _MACHINES.get(platform.machine().lower(), platform.machine().lower())
    made_for = manifest.get("machines", [])
    if machine not in made_for:
        known = ", ".join(made_for)
        raise BundleError(f"{name}: made for {known}, this device is {machine}; fetch the one for it")
