"""The release log: who let which model in, when, why, on what evidence. Append-only, chained, signed.

One JSON line per entry. Each carries the hash of the line before it and an Ed25519 signature over its
own hash, so an edit, a gap or a reordering shows. Where the lines lie is the store's business; MLflow's
aliases are only a view of them.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from pipelines.fingerprint import code_digest
from pipelines.release_store import FileStore, ReleaseStore, store_of
from pipelines.settings import DATABASE, Settings
from pipelines.signing import key_id, load_key, sign, trusted_keys, verify
from validation.errors import InputError
from validation.evidence import Look
from validation.gates import Outcome
from validation.record import Record

GENESIS = "0" * 64
"""Stands where the first entry of the log, or of a dataset, names the one before it."""
PURPOSE = "release log"
FORMAT = 3
"""2 added accounts, automatic actors, requests and their terms, 3 what a gate looked at. Unknown formats are
refused."""


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
    REQUEST = "request"
    """A gate passed; the promotion waits for a person."""
    APPROVE = "approve"
    DECLINE = "decline"


class ApprovalTerms(Record):
    """What a requested promotion needs, as the policy said when it was asked for."""

    persons: int = Field(ge=1)
    """How many different persons have to approve."""
    expires: str
    """ISO time; an approval after it does not count."""
    trainer: str = ""
    """Account that trained the candidate, "" where unknown."""
    trainer_may_approve: bool = True

    @property
    def needs_accounts(self) -> bool:
        """Whether who may answer depends on accounts, which a way in that knows names alone cannot show."""
        return self.persons > 1 or not self.trainer_may_approve


class GateLook(Record):
    """What a gate looked at for a verdict: looks spend error, and are counted where nobody can edit them."""

    gate: Stage
    look: Look


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
    # Since format 2; left out where they say nothing, so that older lines keep their hashes.
    account: str = ""
    automatic: bool = False
    request: str | None = None
    """Hash of the entry that asked for this promotion."""
    terms: ApprovalTerms | None = None
    # Since format 3, likewise.
    looked: GateLook | None = None

    @model_serializer(mode="wrap")
    def _without_empty_additions(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later = ("account", "automatic", "request", "terms", "looked")
        return {name: value for name, value in serialize(self).items() if value or name not in later}


class ReleaseEntry(Record):
    """One line of the log. `hash` covers every field above it; `signature` is over `hash` by key `key`."""

    sequence: int
    time: str
    decision: Decision
    code: str
    previous: str
    key: str
    format: int = 1
    hash: str
    signature: str

    @model_serializer(mode="wrap")
    def _without_first_format(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if (name, value) != ("format", 1)}

    def expected_hash(self) -> str:
        content = self.model_dump(mode="json")
        del content["hash"], content["signature"]
        return hashlib.sha256(_canonical(content)).hexdigest()

    def line(self) -> bytes:
        return _canonical(self.model_dump(mode="json")) + b"\n"


class StaleDecision(InputError):
    """Another decision about the same dataset came in between: look again, then decide."""


class ReleaseLog:
    """The log in `store`, written by one process at a time. Holds no key between calls."""

    def __init__(self, store: ReleaseStore, keys: Path, environ: Mapping[str, str] = os.environ) -> None:
        self.store = store
        self._keys = keys
        self._environ = environ

    @classmethod
    def of(cls, settings: Settings) -> "ReleaseLog":
        """The log of this installation, to be read: nothing is made or healed by this.

        Raises InputError where the log was moved to a database that does not hold it yet.
        """
        log = cls(store_of(settings), settings.keys)
        if settings.database_url:
            _refuse_to_start_anew(log, settings)
        return log

    @classmethod
    def open(cls, settings: Settings) -> "ReleaseLog":
        """The log of this installation, made where there is none; a line torn by a power cut is set aside.

        Raises InputError naming the line where the chain does not hold.
        """
        log = cls.of(settings)
        with log.store.writing() as turn:
            log._verified(turn.lines)
        return log

    def entries(self) -> list[ReleaseEntry]:
        """Every whole entry, oldest first. Raises InputError naming the line where the chain breaks."""
        return self._verified(self.store.read())

    def trusts(self, key: str) -> bool:
        """Whether this installation knows the public key of this id."""
        return key in trusted_keys(self._keys)

    def append(self, decision: Decision, expected_head: str) -> ReleaseEntry:
        """Add one signed entry; on disk for good when this returns.

        `expected_head` is the hash of the dataset's last entry that the decision was made on (GENESIS if
        none). Raises StaleDecision when there is a newer one, InputError when the chain does not hold.
        """
        key = load_key(self._keys, self._environ)
        with self.store.writing() as turn:
            entries = self._verified(turn.lines)
            _refuse_stale(entries, decision.dataset, expected_head)
            draft = ReleaseEntry(
                sequence=len(entries) + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                decision=decision,
                code=code_digest(),
                previous=entries[-1].hash if entries else GENESIS,
                key=key_id(key.public_key()),
                format=FORMAT,
                hash="",
                signature="",
            )
            digest = draft.expected_hash()
            signature = sign(key, PURPOSE, digest.encode())
            entry = draft.model_copy(update={"hash": digest, "signature": signature})
            turn.append(entry.line())
        return entry

    def take_over(self, other: ReleaseStore) -> int:
        """Append what another store has beyond this one, byte for byte; the number of lines that came.

        Raises InputError when its chain does not hold or does not begin with what is here.
        """
        lines = other.read()
        self._verified(lines, other.place)
        with self.store.writing() as turn:
            if turn.lines != lines[: len(turn.lines)]:
                raise InputError(
                    f"{self.store.place}: it tells another history than {other.place}; nothing done"
                )
            for line in lines[len(turn.lines) :]:
                turn.append(line)
        return len(lines) - len(turn.lines)

    def _verified(self, lines: list[bytes], where: str = "") -> list[ReleaseEntry]:
        trusted = trusted_keys(self._keys)
        entries: list[ReleaseEntry] = []
        for number, line in enumerate(lines, start=1):
            place = f"{where or self.store.place}: line {number}"
            entry = _parse(line, place)
            fault = "it is not an entry" if entry is None else _fault(entry, line, entries, trusted)
            if entry is None or fault:
                raise InputError(f"{place}: {fault}; it was damaged or edited: restore a backup")
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
        return f"it is signed by the unknown key {entry.key!r} (is its {entry.key}.pub missing?)"
    return (
        ""
        if verify(trusted[entry.key], PURPOSE, entry.hash.encode(), entry.signature)
        else "its signature is false"
    )


def _parse(line: bytes, place: str) -> ReleaseEntry | None:
    try:
        return ReleaseEntry.model_validate_json(line)
    except ValidationError:
        if (found := _format(line)) > FORMAT:
            raise InputError(
                f"{place}: written by a newer dankai (format {found}, known up to {FORMAT}); upgrade this one"
            ) from None
        return None


def _format(line: bytes) -> int:
    try:
        content = json.loads(line)
    except ValueError:
        return 0
    number = content.get("format") if isinstance(content, dict) else None
    return number if isinstance(number, int) else 0


def _refuse_to_start_anew(log: ReleaseLog, settings: Settings) -> None:
    """An empty database beside a file that tells a history is a move half made."""
    left_behind = FileStore(settings.release_log).read()
    if left_behind and not log.store.read():
        raise InputError(
            f"{DATABASE}: its release log is empty, but {settings.release_log} holds {len(left_behind)} "
            f"entries; take them over with: dankai audit import {settings.release_log}"
        )


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
