"""The ladder: which callers the candidate answers. It moves by a verdict per step, and each move is signed.

Moves are JSON lines, chained and signed like the release log's, so that a candidate's share after a restart
is what the verdicts made it and nothing else.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from pipelines.signing import key_id, sign, verify
from validation.canary import CanaryPolicy, Pair, StepVerdict, judge_step
from validation.errors import InputError
from validation.gates import Outcome
from validation.record import Record

PURPOSE = "canary ladder"
_LOOK_AGAIN = 1.05
"""A step is judged again when it has so many times the requests of the last look."""

Action = Literal["start", "climb", "complete", "breach", "again"]


class Move(Record):
    """One move; `share` is the candidate's from then on. `signature` covers everything else."""

    sequence: int
    time: str
    action: Action
    share: float
    incumbent: str
    candidate: str
    """SHA-256 of the weights."""
    actor: str
    reason: str
    policy: str
    verdict: StepVerdict | None
    previous: str
    key: str
    signature: str = ""

    def content(self) -> bytes:
        fields = self.model_dump(mode="json", exclude={"signature"})
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def hash(self) -> str:
        return hashlib.sha256(self.content()).hexdigest()


class Ladder:
    """Where a candidate stands against an incumbent; the moves so far are in `path`."""

    def __init__(
        self,
        path: Path,
        subjects: tuple[str, str],
        policy: CanaryPolicy,
        key: Ed25519PrivateKey,
        trusted: Mapping[str, Ed25519PublicKey],
        actor: str,
    ) -> None:
        """`subjects`: checkpoint hashes of incumbent and candidate. Raises InputError on moves of others."""
        self._path, self._policy, self._key, self._actor = path, policy, key, actor
        self._incumbent, self._candidate = subjects
        self._turn = threading.RLock()
        self.moves = read_moves(path, trusted)
        if any((move.incumbent, move.candidate) != subjects for move in self.moves):
            raise InputError(f"{path}: holds moves of other models; move the file away")
        if not self.moves:
            self._move("start", policy.shares[0], f"{actor} started it", None)
        self.pairs: list[Pair] = []
        self._next_look = 1.0

    @property
    def last(self) -> Move:
        return self.moves[-1]

    @property
    def share(self) -> float:
        """Share of the callers that the candidate answers now."""
        return self.last.share

    @property
    def is_breached(self) -> bool:
        return self.last.action == "breach"

    def go_on_with(self, pairs: list[Pair]) -> None:
        """Take up what was found under the last move before a restart."""
        with self._turn:
            self.pairs = pairs

    def again(self, reason: str) -> None:
        """Start anew after a breach, by a person's explicit word."""
        if not self.is_breached:
            raise InputError(f"{self._candidate[:12]}: no breach ended its ladder; leave --again out")
        self._move("again", self._policy.shares[0], reason, None)

    def add(self, pair: Pair, move: int) -> Move | None:
        """Take in one more request; the move it caused, if any. Requests of an earlier move count no more."""
        with self._turn:
            if move != self.last.sequence or self.is_breached:
                return None
            self.pairs.append(pair)
            if not pair.fault and len(self.pairs) < self._next_look:
                return None
            self._next_look = max(len(self.pairs) + 10, len(self.pairs) * _LOOK_AGAIN)
            return self._decide(judge_step(self.pairs, self.share, self._policy))

    def verdict(self) -> StepVerdict:
        """What the requests of the present step say so far."""
        with self._turn:
            return judge_step(self.pairs, self.share, self._policy)

    def _decide(self, verdict: StepVerdict) -> Move | None:
        if verdict.outcome is Outcome.FAIL:
            failed = (reason for reason in verdict.reasons if reason.startswith(Outcome.FAIL))
            return self._move("breach", 0.0, "; ".join(failed), verdict)
        if verdict.outcome is Outcome.PASS and self.last.action != "complete":
            higher = [share for share in self._policy.shares if share > self.share]
            action = "climb" if higher else "complete"
            return self._move(action, higher[0] if higher else self.share, "every check passed", verdict)
        return None

    def _move(self, action: Action, share: float, reason: str, verdict: StepVerdict | None) -> Move:
        move = Move(
            sequence=len(self.moves) + 1,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            action=action,
            share=share,
            incumbent=self._incumbent,
            candidate=self._candidate,
            actor=self._actor,
            reason=reason,
            policy=self._policy.digest(),
            verdict=verdict,
            previous=self.moves[-1].hash() if self.moves else "",
            key=key_id(self._key.public_key()),
        )
        move = move.model_copy(update={"signature": sign(self._key, PURPOSE, move.content())})
        self.moves.append(move)  # in force at once; a breach that the disk refuses is a breach all the same
        self.pairs, self._next_look = [], 1.0
        _append(self._path, move)
        return move


def read_moves(path: Path, trusted: Mapping[str, Ed25519PublicKey]) -> list[Move]:
    """The moves in `path`, none without a file. Raises InputError naming the line that is not as signed."""
    moves: list[Move] = []
    lines = (
        path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    )  # what a power cut left unfinished is none
    for number, line in enumerate(lines, start=1):
        move = _parse(line)
        key = trusted.get(move.key) if move else None
        previous = moves[-1].hash() if moves else ""
        if move is None or key is None or not verify(key, PURPOSE, move.content(), move.signature):
            raise InputError(f"{path}: line {number} is not as signed; restore it or move the file away")
        if (move.sequence, move.previous) != (number, previous):
            raise InputError(f"{path}: line {number} does not follow the line before; restore the file")
        moves.append(move)
    return moves


def _parse(line: bytes) -> Move | None:
    try:
        return Move.model_validate_json(line)
    except ValidationError:
        return None


def _append(path: Path, move: Move) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)  # an unfinished line is none
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(move.model_dump(mode="json")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
