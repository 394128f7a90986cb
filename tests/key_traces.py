"""Looking for a private key where none may be, in every form in which it might have got there."""

import base64
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def traces_of(key: Ed25519PrivateKey, files: Iterable[Path], texts: Iterable[str] = ()) -> list[str]:
    """Names of the files (and numbers of the texts) that hold the key: raw, in hex, in base64 or as PEM."""
    forms = _forms(key)
    contents = [(str(file), file.read_bytes()) for file in files if file.is_file()]
    contents += [(f"text {number}", text.encode()) for number, text in enumerate(texts)]
    return [name for name, content in contents if any(form in content for form in forms)]


def _forms(key: Ed25519PrivateKey) -> list[bytes]:
    raw = key.private_bytes_raw()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Base64 of a longer text that holds the key, at each of the three ways to fall on its groups of three.
    shifted = [base64.b64encode(raw[shift:])[:36] for shift in range(3)]
    escaped = repr(raw)[2:-1].encode()
    return [raw, raw.hex().encode(), raw.hex().upper().encode(), escaped, pem.splitlines()[1], *shifted]
