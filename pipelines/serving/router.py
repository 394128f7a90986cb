"""Who answers a request: the incumbent, or for a growing share of callers the candidate; both are compared.

Whatever the candidate does (crash, hang, NaN), the caller gets the incumbent's answer, later by the
candidate's deadline at most. The one that does not answer the caller is asked in the background.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pipelines.serving.backend import STILL_LOADING, Answer, Backend, Unanswered
from pipelines.serving.comparison import Comparison
from pipelines.serving.ladder import Ladder, Move
from pipelines.serving.requests import Request
from pipelines.serving.store import Exchange, Exchanges
from pipelines.serving.watch import Seen, Watch

INCUMBENT_SECONDS = 60.0
"""As long as MLflow's scoring server waits."""
_WAITING = 100
"""Requests that may wait for the background; more than that are answered and not compared."""

By = Literal["incumbent", "candidate"]


@dataclass(frozen=True)
class Reply:
    """What the caller gets."""

    status: int
    body: bytes
    by: By


@dataclass(frozen=True)
class _Asked:
    """What asking one side gave; no answer where it crashed, hung or did not load."""

    answer: Answer | None
    fault: str = ""

    @property
    def is_usable(self) -> bool:
        return self.answer is not None and not self.fault

    @property
    def is_refusal(self) -> bool:
        """It found the request wrong, which is an answer too."""
        return self.answer is not None and 400 <= self.answer.status < 500

    @property
    def seconds(self) -> float | None:
        return self.answer.seconds if self.answer else None

    @property
    def body(self) -> bytes:
        return self.answer.body if self.answer else b""


@dataclass
class Candidate:
    """What is on trial, with the ladder it climbs and where its answers are kept."""

    backend: Backend
    ladder: Ladder
    exchanges: Exchanges
    seconds: float
    """Its deadline: the most that it can cost a caller."""


@dataclass
class Router:
    """Answers requests from any number of threads."""

    incumbent: Backend
    candidate: Candidate | None
    comparison: Comparison
    on_move: Callable[[Move], None] = lambda move: None
    watch: Watch = field(default_factory=Watch)
    """Of the incumbent, whoever answers the caller."""
    answered: bytes | None = None
    """The last request that got an answer, of a model of this dataset: a model that refuses it is broken."""
    num_uncompared: int = 0
    _waiting: "queue.Queue[Callable[[], None] | None]" = field(default_factory=lambda: queue.Queue(_WAITING))

    def __post_init__(self) -> None:
        threading.Thread(target=self._compare_forever, daemon=True).start()

    def answer(self, request: Request) -> Reply:
        """The reply for the caller. Raises Unanswered only where the incumbent itself cannot answer."""
        candidate = self.candidate
        if candidate is None or candidate.ladder.is_breached:
            return _reply(self._ask_incumbent(request), "incumbent")
        move, asked = candidate.ladder.last, None
        if request.falls_into(move.share):
            asked = _ask(candidate.backend, request, candidate.seconds)
            if asked.is_usable:
                self.answered = request.body
                self._later(lambda: self._compare(request, move, None, asked, assigned=True))
                return _reply(asked, "candidate")
        incumbent = self._ask_incumbent(request)
        if asked is not None:  # the candidate failed a caller: seen at once, before the next one asks
            if not (asked.is_refusal and incumbent.is_refusal):
                self._safely(lambda: self._compare(request, move, incumbent, asked, assigned=True))
        elif incumbent.is_usable:
            self._later(lambda: self._compare(request, move, incumbent, None, assigned=False))
        return _reply(incumbent, "incumbent")

    def settle(self) -> None:
        """Wait until everything that was answered is compared too."""
        self._waiting.join()

    def stop(self) -> None:
        """Compare what waits, then no more. Callers are answered all the same."""
        self._waiting.put(None)
        self.settle()

    def _ask_incumbent(self, request: Request) -> _Asked:
        """Twice, where its process died: the second time it is another one."""
        asked = _ask(self.incumbent, request, INCUMBENT_SECONDS)
        if asked.answer is None:
            asked = _ask(self.incumbent, request, INCUMBENT_SECONDS)
        if asked.is_refusal:
            self._later(self._note_refusal)
        else:
            self._note(request, asked)
        if asked.answer is None:
            raise Unanswered(asked.fault)
        return asked

    def _note(self, request: Request, asked: _Asked) -> None:
        self.watch.add(Seen(not asked.is_usable, asked.seconds))
        if asked.is_usable:
            self.answered = request.body

    def _note_refusal(self) -> None:
        """Its caller's affair, unless the model refuses even what was answered before."""
        known = self.answered
        if known is not None and not _ask(self.incumbent, Request("", known), INCUMBENT_SECONDS).is_usable:
            self.watch.add(Seen(True, None))

    def _later(self, work: Callable[[], None]) -> None:
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self.num_uncompared += 1

    def _compare_forever(self) -> None:
        while (work := self._waiting.get()) is not None:
            self._safely(work)
            self._waiting.task_done()
        self._waiting.task_done()

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # a full disk, say: the callers are served all the same
            self.num_uncompared += 1

    def _compare(
        self, request: Request, move: Move, incumbent: _Asked | None, asked: _Asked | None, assigned: bool
    ) -> None:
        """Ask whichever side was not asked, keep both answers, and let the ladder see them."""
        candidate = self.candidate
        assert candidate is not None
        if incumbent is None:
            incumbent = _ask(self.incumbent, request, INCUMBENT_SECONDS)
            if incumbent.is_refusal:
                self._note_refusal()
            else:
                self._note(request, incumbent)
        asked = asked or _ask(candidate.backend, request, candidate.seconds)
        if asked.fault == STILL_LOADING and not assigned:
            self.num_uncompared += (
                1  # nobody waited for it, and why it is loading was counted when it happened
            )
            return
        both = incumbent.is_usable and asked.is_usable
        exchange = Exchange(
            id=request.id,
            move=move.sequence,
            share=move.share,
            assigned=assigned,
            fault=asked.fault,
            incumbent_fault=incumbent.fault,
            disagreement=self.comparison.disagreement(incumbent.body, asked.body) if both else None,
            incumbent_seconds=incumbent.seconds,
            candidate_seconds=asked.seconds,
            request=request.body,
            incumbent=incumbent.body,
            candidate=asked.body,
        )
        if candidate.exchanges.add(exchange):
            moved = candidate.ladder.add(exchange.pair, move.sequence)
            if moved is not None:
                candidate.exchanges.note_move(moved.sequence)
                self.on_move(moved)


def _ask(backend: Backend, request: Request, seconds: float) -> _Asked:
    try:
        answer = backend.ask(request.body, seconds)
    except Unanswered as error:
        return _Asked(None, str(error))
    if answer.status != 200:
        return _Asked(answer, f"refused: status {answer.status}")
    return _Asked(answer, answer.fault)


def _reply(asked: _Asked, by: By) -> Reply:
    assert asked.answer is not None
    return Reply(asked.answer.status, asked.answer.body, by)
