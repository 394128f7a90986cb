"""The months after the release, in order: each is validated, scored and checked for drift.

Drift that matters starts a retraining; its challenger meets the champion on the next month, which
neither has seen, and replaces it only if the steady gate passes. On a month whose data do not pass, nobody is
judged: it promotes nothing, takes nothing back and trains nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pipelines.calibration import calibrate
from pipelines.checkpoint import Checkpoint
from pipelines.data.contract import contract_of
from pipelines.data.snapshot import read_snapshot
from pipelines.data.spec import Split
from pipelines.data.windows import FIXED_PARTS, Windows
from pipelines.evaluation import TASK_METRICS, Evaluation, resampling, task_value
from pipelines.inspection import Released, Seen, inspect, released_profile
from pipelines.job import Job, Prepared
from pipelines.judging import score
from pipelines.monitoring import Observation, observe, roll_back_if_breached
from pipelines.reconciliation import reconcile
from pipelines.release import enter_challenger
from pipelines.retraining import meet, reading_as, train_challenger
from pipelines.scoring import Scores, load_scored
from pipelines.tracking import track_month
from validation.data import DataReport, validate
from validation.drift import DriftReport
from validation.gates import Outcome
from validation.kpis import kpi
from validation.record import Record
from validation.statistics import METRICS, Interval, paired_interval

VALIDATION_DAYS = 7  # held back at the end of a retraining's data for early stopping


class Month(Record):
    """What happened in one month of operation."""

    month: str
    champion: str
    """SHA-256 of the weights that were live."""
    data: DataReport
    metric: str
    value: Interval
    drift: DriftReport
    evaluation: Evaluation | None = None
    """The challenger's meeting with the champion, where there was one."""
    retrained: str | None = None
    """SHA-256 of the challenger trained at the end of the month."""
    rolled_back: str | None = None
    """Why the live model was taken back at the end of the month."""
    not_judged: str | None = None
    """Why this month decided nothing: its data did not pass."""
    waiting: str | None = None
    """SHA-256 of the challenger that such a month left waiting for the next one."""


def replay_month(
    job: Job,
    prepared: Prepared,
    month: str,
    champion: Checkpoint,
    challenger: Checkpoint | None,
    released: Scores,
    baseline: Scores,
    dense: Checkpoint,
    has_next: bool,
    earlier: Sequence[DriftReport] = (),
) -> tuple[Month, Checkpoint, Checkpoint | None]:
    """One month: the report, who is champion after it, and who challenges in the next.

    `earlier` are the drift reports of the months before. Without a next month nothing is retrained: there
    would be no windows to judge the challenger on.
    """
    data = _validate_month(job, prepared, month)
    scores = score(job, prepared, champion, month, job.plan.target_density, "champion")
    seen = Month(
        month=month,
        champion=champion.sha256,
        data=data,
        metric=TASK_METRICS[job.spec.task][0],
        value=task_value(load_scored(scores), job.spec, job.policy),
        drift=_inspect(job, prepared, month, champion, scores, released, earlier),
    )
    if data.outcome is not Outcome.PASS:
        return _tracked(job, prepared, _not_judged(seen, challenger)), champion, challenger
    evaluation, following = None, None
    if challenger is not None:
        evaluation, is_live = meet(job, prepared, month, challenger, champion, scores, baseline)
        if is_live:
            champion = challenger
    rolled_back = _watch(job, month, scores, baseline)
    if rolled_back is None and seen.drift.decision == "retrain" and has_next:
        following = _retrain(job, prepared, month, champion, dense, released, seen.drift)
    retrained = following.sha256 if following else None
    happened = {"evaluation": evaluation, "retrained": retrained, "rolled_back": rolled_back}
    return _tracked(job, prepared, seen.model_copy(update=happened)), champion, following


def _tracked(job: Job, prepared: Prepared, report: Month) -> Month:
    track_month(job, prepared, report)
    return report


def _not_judged(seen: Month, challenger: Checkpoint | None) -> Month:
    """No evidence is no pass, and no fault of a model's either: a challenger waits for the next month."""
    why = f"data {seen.data.outcome}: {seen.data.reason}"
    return seen.model_copy(update={"not_judged": why, "waiting": challenger.sha256 if challenger else None})


def _inspect(
    job: Job,
    prepared: Prepared,
    month: str,
    champion: Checkpoint,
    scores: Scores,
    released: Scores,
    earlier: Sequence[DriftReport],
) -> DriftReport:
    windows = job.windows(prepared)
    then = Released(released, released_profile(job, prepared, champion))
    return inspect(job, windows, windows, month, champion, scores, then, Seen(earlier))


def _validate_month(job: Job, prepared: Prepared, month: str) -> DataReport:
    windows = job.windows(prepared)
    contract = contract_of(job.spec, f"{job.spec.name}-{month}")
    share = job.policy.data.max_quarantined_share

    def compute() -> DataReport:
        rows = read_snapshot(prepared.snapshot).filter(windows.parts == windows.part_names.index(month))
        folder = prepared.snapshot.content_hash[:12]
        docs, aside = job.folder / "data_docs" / f"{folder}-{month}", job.folder / "quarantine" / folder
        with job.reporting(f"validating {month}"):
            return validate(rows.to_pandas(), contract, docs, aside, max_quarantined_share=share)

    inputs = {"prepared": prepared, "month": month, "contract": contract, "share": share}
    return job.once(f"validate-{month}", inputs, DataReport, compute)


def _watch(job: Job, month: str, live: Scores, baseline: Scores) -> str | None:
    """Note how what is live did beside the baseline; why the monitor took it back, if it did."""
    name, how = TASK_METRICS[job.spec.task][0], resampling(job.policy, job.spec, live.num_windows)
    ours, theirs = load_scored(live), load_scored(baseline)
    beside = kpi(
        name,
        paired_interval(METRICS[name], ours, theirs, **how),
        checkpoint=live.scored,
        snapshot=live.snapshot,
        versus="baseline",
        reference_value=METRICS[name](theirs),
        reference_checkpoint=baseline.scored,
    )
    seen = Observation(window=month, checkpoint=live.scored, kpis=(beside,))
    observe(job.settings, job.spec.name, seen)
    after = roll_back_if_breached(job.log, job.settings, job.spec.name, job.policy, name)
    if after is None:
        return None
    reconcile(job.log, job.tracker)
    return next(entry.decision.reason for entry in job.log.entries() if entry.hash == after.head)


def _retrain(
    job: Job,
    prepared: Prepared,
    month: str,
    champion: Checkpoint,
    dense: Checkpoint,
    released: Scores,
    drift: DriftReport,
) -> Checkpoint:
    """Train on everything up to the end of the month; what comes of it challenges the champion in the next.

    Its budgets are compared with the `dense` incumbent's on its own validation part.
    """
    inner = reading_as(job, champion, until_end_of(month))
    challenger = train_challenger(inner, prepared, champion, released).checkpoint
    calibrate(inner, prepared, challenger, dense)
    reason = f"drift in {month}: {'; '.join(drift.reasons)}"
    enter_challenger(job, challenger, reason, job.plan.target_density)
    return challenger


def until_end_of(month: str) -> Split:
    """Training up to the month's last week, validation on that week; what comes after is unseen."""
    year, number = (int(part) for part in month.split("-"))
    end = datetime(year + number // 12, number % 12 + 1, 1)
    return Split(validation=end - timedelta(days=VALIDATION_DAYS), test=end)


def replay_parts(windows: Windows) -> Sequence[str]:
    """The months of a dataset's replay; none where the split names no replay."""
    return [part for part in windows.part_names if part not in FIXED_PARTS]
