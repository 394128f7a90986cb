"""Stored evaluations under another policy: which decisions would have been others, and why.

Thresholds, severities, margins and age limits are judged again on the stored KPIs. Another confidence, other
looks or other groups need other intervals, which are computed again from the stored scores. What was timed
keeps the interval it has: the timings are not part of an evaluation.
"""

from collections.abc import Iterable, Iterator

from pipelines.evaluation import Evaluation, task_kpis
from pipelines.evaluations import Stored
from pipelines.panel import GAP, gaps_asked, groups_asked
from validation.errors import InputError
from validation.gates import Check, Outcome, Stage, Verdict, judge
from validation.kpis import TASK_KINDS, Kpi
from validation.policy import Policy
from validation.record import Record

_TASK_NAMES = {kind.name for kind in TASK_KINDS}
_OF_SCORES = {*_TASK_NAMES, GAP}


class CheckChange(Record):
    """One check that would have come out differently; None where one of the policies does not ask it."""

    check: str
    was: Outcome | None
    would_be: Outcome | None
    reason: str
    """Why, by the new policy; by the old one where the new does not ask."""


class Replay(Record):
    """One stored decision, judged again."""

    run_id: str
    dataset: str
    stage: Stage
    checkpoint: str
    judged_at: str
    was: Outcome
    would_be: Outcome | None
    """None where the new policy needs what was not kept."""
    policy_was: str
    changes: tuple[CheckChange, ...] = ()
    recomputed: bool = False
    """From the scores, because the new policy needs other intervals than were stored."""
    problem: str = ""
    """Why it could not be replayed."""

    @property
    def is_other(self) -> bool:
        return self.would_be is not None and self.would_be is not self.was


def backtest(stored: Iterable[Stored], policy: Policy) -> Iterator[Replay]:
    """Every stored evaluation judged again by `policy`, in their order."""
    return (_replay(each, policy) for each in stored)


def _replay(stored: Stored, policy: Policy) -> Replay:
    evaluation, was = stored.evaluation, stored.evaluation.verdict
    plain = Replay(
        run_id=stored.run_id,
        dataset=stored.dataset,
        stage=evaluation.stage,
        checkpoint=was.evidence.checkpoint,
        judged_at=was.evidence.judged_at or "",
        was=was.outcome,
        would_be=None,
        policy_was=was.policy_digest,
    )
    needs_scores = _needs_other_intervals(evaluation, policy)
    try:
        kpis = _recomputed(evaluation, policy) if needs_scores else evaluation.kpis
    except InputError as error:
        said = f"other intervals are needed, and the scores cannot be read: {error}"
        return plain.model_copy(update={"problem": said})
    verdict = judge(kpis, policy.stage(evaluation.stage), was.evidence)
    changes = tuple(_changes(was, verdict))
    new = {"would_be": verdict.outcome, "changes": changes, "recomputed": needs_scores}
    return plain.model_copy(update=new)


def _needs_other_intervals(evaluation: Evaluation, policy: Policy) -> bool:
    """Whether the policy asks for another confidence, or for groups in another way, than was computed."""
    rules, look = policy.stage(evaluation.stage), evaluation.verdict.evidence.look
    stored = {kpi.confidence for kpi in evaluation.kpis if kpi.name in _OF_SCORES}
    same_confidence = all(
        confidence is not None and abs(confidence - rules.confidence_at(look)) < 1e-9 for confidence in stored
    )
    before = [check.threshold for check in evaluation.verdict.checks]
    asks_no_more = all(
        asked(rules.thresholds).items() <= asked(before).items() for asked in (groups_asked, gaps_asked)
    )
    return not (same_confidence and asks_no_more)


def _recomputed(evaluation: Evaluation, policy: Policy) -> tuple[Kpi, ...]:
    names = [kpi.name for kpi in evaluation.kpis if kpi.name in _TASK_NAMES]
    main = evaluation.verdict.evidence.task_metric
    ordered = [main, *(name for name in dict.fromkeys(names) if name != main)]
    others = (kpi for kpi in evaluation.kpis if kpi.name not in _OF_SCORES)
    return (*task_kpis(evaluation, ordered, policy), *others)


def _changes(was: Verdict, would_be: Verdict) -> Iterator[CheckChange]:
    before, after = ({_name(check): check for check in verdict.checks} for verdict in (was, would_be))
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if _weight(old) != _weight(new):
            told = new or old
            assert told is not None
            yield CheckChange(
                check=name,
                was=old.outcome if old else None,
                would_be=new.outcome if new else None,
                reason=f"{told.reason} ({told.severity})",
            )


def _name(check: Check) -> str:
    versus = f" vs {check.threshold.versus}" if check.threshold.versus else ""
    return f"{check.blessing}: {check.kpi}{versus}{' ' + check.slice if check.slice else ''}"


def _weight(check: Check | None) -> tuple[Outcome, bool] | None:
    """What a check contributes to the verdict: its answer, and whether it decides."""
    return (check.outcome, check.severity == "required") if check else None
