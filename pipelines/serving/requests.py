"""Requests as callers send them: {"inputs": {...}, "params": {"budget": ...}}, each with an id."""

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation.errors import InputError

MAX_BYTES = 16 << 20
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(frozen=True)
class Request:
    """One request and the id that decides who answers it."""

    id: str
    body: bytes
    """JSON as MLflow's scoring server takes it."""

    def falls_into(self, share: float) -> bool:
        """Whether its id lies in the first `share` of all ids: always the same ones, and more as it grows."""
        number = int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "big")
        return number < share * 2**64


@dataclass(frozen=True)
class Malformed:
    """A stored request that is none, and why."""

    place: str
    reason: str


def request_id(given: str | None) -> str:
    """The caller's id, or a new one. Raises ValueError on one that is too long or no plain word."""
    if not given:
        return uuid.uuid4().hex
    if not _ID.fullmatch(given):
        raise ValueError("request id: give up to 128 letters, digits and . _ : -")
    return given


def stored_requests(place: Path) -> Iterator[Request | Malformed]:
    """Requests of a file, or of every .json and .jsonl file in a folder, in order of name.

    A .json file holds one request, named after the file; a .jsonl file one a line, with an "id" or named
    after file and line. Raises InputError where there is no such file.
    """
    files = (
        sorted(f for kind in ("*.json", "*.jsonl") for f in place.glob(kind)) if place.is_dir() else [place]
    )
    if not files or not files[0].is_file():
        raise InputError(f"{place}: no request file; give a .json or .jsonl file, or a folder of them")
    for file in files:
        yield from _lines(file) if file.suffix == ".jsonl" else [_one(file)]


def _one(file: Path) -> Request | Malformed:
    return _parse(file.read_bytes(), file.name, file.stem)


def _lines(file: Path) -> Iterator[Request | Malformed]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse(line, f"{file.name}:{number}", f"{file.stem}:{number}")


def _parse(text: bytes, place: str, name: str) -> Request | Malformed:
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"{len(text)} bytes, at most {MAX_BYTES} are taken")
        content: Any = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object with inputs")
        identity = content.pop("id", None)
        if identity is not None and not isinstance(identity, str):
            raise ValueError("id: give text")
        return Request(request_id(identity or re.sub(r"[^\w.:-]", "-", name)), json.dumps(content).encode())
    except (ValueError, RecursionError) as error:
        return Malformed(place, (str(error).splitlines() or ["not readable"])[0])
