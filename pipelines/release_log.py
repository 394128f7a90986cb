"""The release log: who let which model in, when, why, on what evidence. Append-only, chained, signed.

One JSON line per entry. Each carries the hash of the line before it and an Ed25519 signature over its
own hash, so an edit, a gap or a reordering shows. MLflow's aliases are only a view of this file.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from pipelines.files import replace_file, sync_folder
from pipelines.fingerprint import code_digest
from pipelines.settings import Settings
from pipelines.signing import key_id, load_key, sign, trusted_keys, verify
from validation.errors import InputError
from validation.gates import Outcome
from validation.record import Record

GENESIS = "0" * 64
"""Stands where the first entry of the log, or of a dataset, names the one before it."""
PURPOSE = "release log"
logger = logging.getLogger(__name__)


class Stage(StrEnum):
    """How far a dataset's rollout has come, lowest first."""

    NONE = "none"
    PILOT = "pilot"
    TRAINING = "training"
    EDGE = "edge"
    STEADY = "steady"


class Action(StrEnum):
    BOOTSTRAP = "bootstrap"
    PROMOTE = "promote"
    HOLD = "hold"
    FAIL = "fail"
    DEMOTE = "demote"
    ROLLBACK = "rollback"
    RETRAIN = "retrain"


class Decision(Record):
    """What was decided about one model version, by whom, on what evidence. Hashes are SHA-256 hex."""

    dataset: str
    action: Action
    from_stage: Stage
    to_stage: Stage
    version: int
    checkpoint: str
    snapshot: str
    actor: str
    reason: str
    outcome: Outcome | None = None
    verdict: str | None = None
    policy: str | None = None


class ReleaseEntry(Record):
    """One line of the log. `hash` covers every field above it; `signature` is over `hash` by key `key`."""

    sequence: int
    time: str
    decision: Decision
    code: str
    previous: str
    key: str
    hash: str
    signature: str

    def expected_hash(self) -> str:
        content = self.model_dump(mode="json", exclude={"hash", "signature"})
        return hashlib.sha256(_canonical(content)).hexdigest()

    def line(self) -> bytes:
        return _canonical(self.model_dump(mode="json")) + b"\n"


class StaleDecision(InputError):
    """Another decision about the same dataset came in between: look again, then decide."""


class ReleaseLog:
    """The file `path`, written by one process at a time under its lock. Holds no key between calls."""

    def __init__(self, path: Path, keys: Path, environ: Mapping[str, str] = os.environ) -> None:
        self.path = path
        self._keys = keys
        self._environ = environ

    @classmethod
    def open(cls, settings: Settings) -> "ReleaseLog":
        """The log of this installation, checked; a line torn by a power cut is set aside first.

        Raises InputError naming the line where the chain does not hold.
        """
        log = cls(settings.release_log, settings.keys)
        with log._locked_for_writing() as file:
            log._verified(_set_torn_line_aside(log.path, file))
        return log

    def entries(self) -> list[ReleaseEntry]:
        """Every whole entry, oldest first. Raises InputError naming the line where the chain breaks."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return self._verified(_whole_lines(file.read()))

    def append(self, decision: Decision, expected_head: str) -> ReleaseEntry:
        """Add one signed entry; on disk for good when this returns.

        `expected_head` is the hash of the dataset's last entry that the decision was made on (GENESIS if
        none). Raises StaleDecision when there is a newer one, InputError when the chain does not hold.
        """
        key = load_key(self._keys, self._environ)
        with self._locked_for_writing() as file:
            entries = self._verified(_set_torn_line_aside(self.path, file))
            _refuse_stale(entries, decision.dataset, expected_head)
            draft = ReleaseEntry(
                sequence=len(entries) + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                decision=decision,
                code=code_digest(),
                previous=entries[-1].hash if entries else GENESIS,
                key=key_id(key.public_key()),
                hash="",
                signature="",
            )
            digest = draft.expected_hash()
            entry = draft.model_copy(
                update={"hash": digest, "signature": sign(key, PURPOSE, digest.encode())}
            )
            _append_whole(file, entry.line())
        return entry

    @contextmanager
    def _locked_for_writing(self) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if is_new:
                sync_folder(self.path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _verified(self, content: bytes) -> list[ReleaseEntry]:
        trusted = trusted_keys(self._keys)
        entries: list[ReleaseEntry] = []
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            entry = _parse(line)
            fault = "it is not an entry" if entry is None else _fault(entry, line, entries, trusted)
            if entry is None or fault:
                raise InputError(
                    f"{self.path}: line {number}: {fault}; it was damaged or edited: restore a backup"
                )
            entries.append(entry)
        return entries


def head(entries: list[ReleaseEntry], dataset: str) -> str:
    """Hash of the last entry about `dataset`, GENESIS if there is none."""
    return next((entry.hash for entry in reversed(entries) if entry.decision.dataset == dataset), GENESIS)


def _refuse_stale(entries: list[ReleaseEntry], dataset: str, expected_head: str) -> None:
    if head(entries, dataset) != expected_head:
        raise StaleDecision(
            f"{dataset}: another decision was recorded meanwhile; look at the history and decide again"
        )


def _fault(
    entry: ReleaseEntry, line: bytes, before: list[ReleaseEntry], trusted: Mapping[str, Ed25519PublicKey]
) -> str:
    """What is wrong with an entry at its place, or ''."""
    if entry.line() != line:
        return "its text was changed"
    if entry.sequence != len(before) + 1:
        return f"sequence {entry.sequence} where {len(before) + 1} belongs"
    if entry.previous != (before[-1].hash if before else GENESIS):
        return "it does not continue the line before"
    if entry.hash != entry.expected_hash():
        return "its content does not fit its hash"
    if entry.key not in trusted:
        return f"it is signed by the unknown key {entry.key!r}"
    return (
        ""
        if verify(trusted[entry.key], PURPOSE, entry.hash.encode(), entry.signature)
        else "its signature is false"
    )


def _parse(line: bytes) -> ReleaseEntry | None:
    try:
        return ReleaseEntry.model_validate_json(line)
    except ValidationError:
        return None


def _read_all(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _append_whole(file: int, line: bytes) -> None:
    size = os.fstat(file).st_size
    try:
        if os.write(file, line) != len(line):
            raise OSError("the disk took only a part of the entry")
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def _set_torn_line_aside(path: Path, file: int) -> bytes:
    """The log's whole lines; a last one cut short by a power cut moves to a file of its own."""
    content = _read_all(file)
    whole = _whole_lines(content)
    if torn := content[len(whole) :]:
        aside = path.with_name(f"{path.name}.torn-{hashlib.sha256(torn).hexdigest()[:12]}")
        replace_file(aside, torn)
        os.ftruncate(file, len(whole))
        os.fsync(file)
        logger.warning("%s: the last line was cut short; set aside as %s", path, aside.name)
    return whole


def _whole_lines(content: bytes) -> bytes:
    """Everything before a torn last line: one without newline, or zeroed where blocks never hit the disk."""
    last_line = content.rstrip(b"\n").rfind(b"\n") + 1
    zero = content.find(b"\0", last_line)  # no entry holds a NUL
    return content[: content.rfind(b"\n", 0, zero if zero >= 0 else len(content)) + 1]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
