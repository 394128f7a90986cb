"""Ed25519 signatures of the release log and of edge bundles.

The private key is read on demand and never put in a record, a message or a log line.
"""

import base64
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipelines.files import replace_file, sync_folder
from pipelines.settings import DATABASE
from validation.errors import InputError

VARIABLE = "DANKAI_SIGNING_KEY"
_FOLDER = 0o755  # whoever shares the installation reads its public keys; the private key has its own mode


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a process that runs a model, or a program not ours: no key, no database password."""
    return {name: value for name, value in environ.items() if name not in (VARIABLE, DATABASE)}


def load_key(folder: Path, environ: Mapping[str, str] = os.environ) -> Ed25519PrivateKey:
    """The key in DANKAI_SIGNING_KEY, else `folder`/signing.key, made with mode 0600 on first use.

    Its public half is written beside it as `folder`/KEY_ID.pub, so that what it signed can still be
    checked after the key is changed. Raises InputError on an unusable key or a file others can read.
    """
    given = environ.get(VARIABLE)
    key = _parse(given.encode(), VARIABLE) if given else _key_file(folder / "signing.key")
    public = folder / f"{key_id(key.public_key())}.pub"
    if not public.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER)
        replace_file(public, public_pem(key.public_key()))
    return key


def trusted_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    """Public keys kept in `folder`, by key id.

    Raises InputError where a file is no such key, or where others could put theirs.
    """
    for place in (folder, *folder.glob("*.pub")):
        _refuse_access(place, 0o022, "others can change whom this installation trusts", "go-w")
    keys = [load_public_key(path) for path in sorted(folder.glob("*.pub"))]
    return {key_id(key): key for key in keys}


def sign(key: Ed25519PrivateKey, purpose: str, message: bytes) -> str:
    """Base64 signature of `message`; one made for another `purpose` never verifies."""
    return base64.b64encode(key.sign(_bound(purpose, message))).decode()


def verify(key: Ed25519PublicKey, purpose: str, message: bytes, signature: str) -> bool:
    """Whether `signature` is this key's for this purpose and message; garbage is just False."""
    try:
        key.verify(base64.b64decode(signature, validate=True), _bound(purpose, message))
    except (InvalidSignature, ValueError):
        return False
    return True


def is_signed(trusted: Mapping[str, Ed25519PublicKey], purpose: str, message: bytes, signature: str) -> bool:
    """Whether one of the `trusted` keys signed `message` for this purpose."""
    return any(verify(key, purpose, message, signature) for key in trusted.values())


def key_id(key: Ed25519PublicKey) -> str:
    """Short name of a public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _bound(purpose: str, message: bytes) -> bytes:
    # A NUL cannot be part of a purpose, so no (purpose, message) pair reads as another.
    return f"dankai {purpose}".encode() + b"\0" + message


def _key_file(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        _create(path)
    _refuse_access(path, 0o077, "others can reach this private key", "600")
    return _parse(path.read_bytes(), str(path))


def _refuse_access(path: Path, forbidden: int, danger: str, mode: str) -> None:
    present = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
    if present & forbidden:
        raise InputError(f"{path}: {danger} (mode {present:04o}); run: chmod {mode} {path}")


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=_FOLDER)
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    replace_file(draft, pem, mode=0o600)
    try:
        # Unlike a rename, a link never overwrites: of two processes at first use, one key wins.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    sync_folder(path.parent)


def _parse(text: bytes, place: str) -> Ed25519PrivateKey:
    try:
        if b"-----BEGIN" in text:
            key = serialization.load_pem_private_key(text.replace(b"\\n", b"\n"), password=None)
        else:
            key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(text.strip(), validate=True))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{place}: not an Ed25519 private key; give PEM or base64 of the 32 raw bytes")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file. Raises InputError where it holds none."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: not an Ed25519 public key in PEM; restore or remove it")
    return key
