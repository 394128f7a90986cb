"""What the ladder has shown so far, step by step, for a table or for programs."""

from pipelines.serving.ladder import Move
from pipelines.serving.service import Service
from validation.canary import StepVerdict
from validation.record import Record


class StepReport(Record):
    """One step: what its requests said and what came of it ("" while it goes on)."""

    verdict: StepVerdict
    ended: str
    reason: str
    time: str


def step_reports(service: Service) -> list[StepReport]:
    """The steps behind, as they were judged when they ended, and the one that is going on."""
    if service.router.candidate is None:
        return []
    ladder = service.router.candidate.ladder
    ended = [_ended(move, move.verdict) for move in ladder.moves if move.verdict is not None]
    if ladder.is_breached:
        return ended
    return [*ended, StepReport(verdict=ladder.verdict(), ended="", reason="", time="")]


def _ended(move: Move, verdict: StepVerdict) -> StepReport:
    return StepReport(verdict=verdict, ended=move.action, reason=move.reason, time=move.time)
