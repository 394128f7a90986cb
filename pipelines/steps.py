"""Steps that are done once: the same command, run again after a crash, goes on where it stopped."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from pipelines.files import replace_file
from pipelines.fingerprint import code_digest, lock_digest
from pipelines.signing import is_signed, load_key, sign, trusted_keys

T = TypeVar("T")
PURPOSE = "step"
logger = logging.getLogger(__name__)


def once(
    folder: Path,
    name: str,
    inputs: Mapping[str, Any],
    record_type: type[T],
    compute: Callable[[], T],
    is_current: Callable[[T], bool] = lambda _: True,
    keys: Path | None = None,
) -> T:
    """The result of `compute()`, remembered in `folder` under the content of its inputs.

    `inputs` holds everything the result depends on: JSON values, Records, frozen dataclasses, hashes.
    The product's own source and its lock file count as inputs
    too, so changed code is run afresh. `record_type` is a
    Record class or `list[...]` of one. A stored record whose `artifact_paths()` are gone is computed
    again, and so is one that `is_current` refuses. Where `compute` raises, nothing is stored. With the
    folder of this installation's `keys` records are signed, and one that is not is computed again: a verdict
    that lets models in is not for everybody to write.
    """
    key = step_key(name, inputs)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.=-]', '-', name)}-{key[:16]}.json"
    adapter = TypeAdapter(record_type)
    stored = _load(path, key, adapter, keys)
    if stored is not None and _artifacts_exist(stored, path) and is_current(stored):
        return stored
    result = compute()
    replace_file(path, _encode(name, key, adapter.dump_python(result, mode="json"), keys))
    return result


def stored(folder: Path, name: str, record_type: type[T], keys: Path) -> list[T]:
    """The signed records of every finished step of this name, newest first, whatever they were made from."""
    adapter = TypeAdapter(record_type)
    paths = sorted(folder.glob(f"{name}-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    records = (_load(path, None, adapter, keys) for path in paths)
    return [record for record in records if record is not None]


def step_key(name: str, inputs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the step's name, its inputs, the product's source code and its lock file."""
    content = {
        "name": name,
        "inputs": to_jsonable_python(inputs),
        "code": code_digest(),
        "lock": lock_digest(),
    }
    return hashlib.sha256(_canonical(content)).hexdigest()


def _load(path: Path, key: str | None, adapter: TypeAdapter[T], keys: Path | None = None) -> T | None:
    """The record in `path`; None where it is not whole, not signed by `keys`, or not the step of `key`."""
    if not path.exists():
        return None
    try:
        envelope = json.loads(path.read_bytes())
        if key not in (None, envelope["key"]) or envelope["sha256"] != _sha256(envelope["record"]):
            raise ValueError("key or checksum does not fit")
        message, signature = _signed_part(envelope), envelope.get("signature", "")
        if keys is not None and not is_signed(trusted_keys(keys), PURPOSE, message, signature):
            raise ValueError("its signature does not hold")
        return adapter.validate_python(envelope["record"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        logger.warning(
            "%s: not a whole record of this step (%s); computing it again", path, type(error).__name__
        )
        return None


def _artifacts_exist(stored: Any, path: Path) -> bool:
    records = stored if isinstance(stored, list) else [stored]
    named = [
        Path(file)
        for record in records
        if hasattr(record, "artifact_paths")
        for file in record.artifact_paths()
    ]
    home = path.parent.parent.resolve()
    # A record is a file that anyone with the folder may have edited: it leads to nothing outside.
    outside = [file for file in named if not file.resolve().is_relative_to(home)]
    missing = [file for file in named if not file.exists()]
    for file in (outside + missing)[:1]:
        said = "lies outside" if outside else "is gone"
        logger.warning("%s: %s %s; computing the step again", path, file, said)
    return not outside and not missing


def _encode(name: str, key: str, record: Any, keys: Path | None) -> bytes:
    envelope = {"step": name, "key": key, "sha256": _sha256(record), "record": record}
    if keys is not None:
        envelope["signature"] = sign(load_key(keys), PURPOSE, _signed_part(envelope))
    return json.dumps(envelope, indent=1).encode() + b"\n"


def _signed_part(envelope: Mapping[str, Any]) -> bytes:
    """Which step it is, and the sum of its record."""
    return f"{envelope['key']} {envelope['sha256']}".encode()


def _sha256(record: Any) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
