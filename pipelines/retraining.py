"""Training a challenger on newer data, and its meeting with the champion on windows that neither has seen."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pipelines.budgets import load_calibration
from pipelines.calibration import calibrate, cost_at_target
from pipelines.candidates import train_candidate
from pipelines.checkpoint import Checkpoint
from pipelines.clock import now
from pipelines.data.spec import Split
from pipelines.data.windows import Windows
from pipelines.evaluation import TASK_METRICS, Evaluation
from pipelines.files import exclusive_lock, replace_file
from pipelines.job import Job, Prepared, dataset_folder
from pipelines.judging import judge_stage, score, score_baselines, steady_kpis
from pipelines.payback import tracked_payback
from pipelines.preparation import known_before, known_data, source_data
from pipelines.release import decide, enter_challenger, live_checkpoint, trained_checkpoint
from pipelines.scoring import Scores, load_scored
from pipelines.second_look import Lineup
from pipelines.settings import Settings
from validation.errors import InputError
from validation.gates import Outcome
from validation.kpis import Reference
from validation.record import Record
from validation.statistics import METRICS

logger = logging.getLogger(__name__)
Ended = Literal["promoted", "held", "dropped", "refused", "unfinished"]


class RetrainingReport(Record):
    """One retraining, from the reason to what the gate said.

    promoted: the challenger is live. held: the evidence does not decide, or a PASS waits for people. dropped:
    the gate failed it. refused: nothing was trained; `why` says what stood in the way. unfinished: it is at
    work, or was cut off; asking for a retraining goes on with it.
    """

    dataset: str
    reason: str
    started_at: str
    finished_at: str
    outcome: Ended
    why: str
    champion: str
    """SHA-256 of the weights that were live at the start."""
    automatic: bool = False
    batch: str | None = None
    """Content hash of the batch that asked for it."""
    challenger: str | None = None
    trained: str | None = None
    """What was trained: selector, dense, sparse or sparse from scratch."""
    verdict: Outcome | None = None
    evaluation: Evaluation | None = None
    split: Split | None = None
    """Training, validation, and the windows from `test` on, on which the two met."""
    snapshot: str | None = None
    train_seconds: float = 0.0
    run_id: str = ""


def retrain(job: Job, reason: str, batch: str | None = None) -> RetrainingReport:
    """Train a challenger on everything known but the newest windows, and let the two meet on those.

    Run again after a crash, it goes on from the last finished step. Raises InputError where nothing is live,
    and where another retraining of the dataset is at work.
    """
    if not reason.strip():
        raise InputError("--reason: say in one line why to train again")
    with exclusive_lock(dataset_folder(job.settings, job.spec.name) / "retraining.lock", wait=False):
        earlier = retrainings(job.settings, job.spec.name)
        cut_off = next((report for report in earlier if report.outcome == "unfinished"), None)
        begun = cut_off or _kept(job.settings, _begun(job, reason, batch))
        if not cut_off and (why := refusal(job, earlier)):
            return _kept(job.settings, _refused(begun, why))
        report = _retrained(job, begun, _ground(job, begun))
        return _kept(job.settings, report.model_copy(update={"finished_at": now()}))


def _begun(job: Job, reason: str, batch: str | None) -> RetrainingReport:
    return RetrainingReport(
        dataset=job.spec.name,
        reason=reason,
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        finished_at="",
        outcome="unfinished",
        why="it is at work, or was cut off",
        champion=live_checkpoint(job.settings, job.spec.name).sha256,
        automatic=job.actor.automatic,
        batch=batch,
    )


def _refused(begun: RetrainingReport, why: str) -> RetrainingReport:
    return begun.model_copy(update={"outcome": "refused", "why": why, "finished_at": now()})


def retrainings(settings: Settings, dataset: str) -> list[RetrainingReport]:
    """Every retraining that was asked for, oldest first. Raises InputError for a damaged report."""
    return [_read(path) for path in sorted(_folder(settings, dataset).glob("*.json"))]


class _Ground(NamedTuple):
    """What two models meet on."""

    champion: Checkpoint
    prepared: Prepared
    split: Split
    released: Scores


def _ground(job: Job, begun: RetrainingReport) -> _Ground:
    """With the champion of the time it was begun, whatever went live since.

    What cannot be done now, for want of rows, is refused, so that nobody goes on with it later.
    """
    try:
        champion = trained_checkpoint(job.settings, job.spec.name, begun.champion)
        prepared = known_data(job)
        split = split_of(job, job.windows(prepared), seen_until(job, champion))
        return _Ground(champion, prepared, split, released_scores(job, champion))
    except InputError as error:
        _kept(job.settings, _refused(begun, str(error)))
        raise


def _retrained(job: Job, start: RetrainingReport, ground: _Ground) -> RetrainingReport:
    champion, prepared, split, released = ground
    tags = {"dataset": job.spec.name, "reason": start.reason, "champion": champion.sha256}
    with job.tracker.run(f"{job.spec.name} retraining", "retraining", tags, job.parent_run) as run_id:
        inner = replace(reading_as(job, champion, split), parent_run=run_id)
        trained = train_challenger(inner, prepared, champion, released)
        challenger = trained.checkpoint
        measure_budgets(inner, prepared, challenger, champion)
        enter_challenger(inner, challenger, start.reason, _density(inner))
        evaluation, is_live = _meet_on_newest(inner, prepared, challenger, champion)
        outcome, why = ending(evaluation, is_live)
        job.tracker.log_tags(run_id, {"outcome": outcome, "why": why, "challenger": challenger.sha256})
    return start.model_copy(
        update={
            "outcome": outcome,
            "why": why,
            "challenger": challenger.sha256,
            "trained": trained.what,
            "verdict": evaluation.verdict.outcome,
            "evaluation": evaluation,
            "split": split,
            "snapshot": prepared.snapshot.content_hash,
            "train_seconds": trained.seconds,
            "run_id": run_id,
        }
    )


def refusal(job: Job, earlier: list[RetrainingReport]) -> str:
    """Why no training may start now, or "": the budget holds for everybody, the cooldown for no person."""
    policy, present = job.policy.retraining, datetime.now(UTC)
    begun = [each for each in earlier if each.outcome not in ("refused", "unfinished")]
    this_month = [each for each in begun if each.started_at[:7] == f"{present:%Y-%m}"]
    spent = sum(each.train_seconds for each in this_month) / 3600
    if spent >= policy.monthly_hours:
        return f"{spent:.2f} of {policy.monthly_hours:g} hours of training are spent in {present:%Y-%m}"
    if not job.actor.automatic or not begun:
        return ""
    ended = datetime.fromisoformat(begun[-1].finished_at)
    again = ended + timedelta(hours=policy.cooldown_hours)
    if present >= again:
        return ""
    return f"the last retraining ended at {ended.isoformat()}, the next may start at {again.isoformat()}"


# Training -----------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A challenger, which part of it was trained, and how long that took with whatever was tried first."""

    checkpoint: Checkpoint
    what: str
    seconds: float


def train_challenger(job: Job, prepared: Prepared, champion: Checkpoint, released: Scores) -> Trained:
    """A model trained by the policy on the job's own split.

    The selector alone comes first where the policy says so, and is all where the validation windows are then
    answered as well as those that the champion was `released` on. What only the selector missed, it can learn
    to read; where the world changed, it cannot bring that back.
    """
    policy, is_dense, spent = job.policy.retraining, champion.mode == "dense", 0.0
    if policy.selector_first and not is_dense:
        tuned = train_candidate(job, prepared, "selector", warm_start=champion)
        if _is_as_good(job, score(job, prepared, tuned, "validation", _density(job), "selector"), released):
            return Trained(tuned, "selector", tuned.train_seconds)
        spent = tuned.train_seconds
    mode = "dense" if is_dense else "sparse"
    if policy.start == "scratch":
        made, what = train_candidate(job, prepared, mode), f"{mode} from scratch"
    else:
        plan, what = job.plan.for_tuning(), mode
        made = train_candidate(job, prepared, mode, warm_start=champion, plan=plan)
    return Trained(made, what, spent + made.train_seconds)


def _is_as_good(job: Job, scores: Scores, released: Scores) -> bool:
    metric = METRICS[TASK_METRICS[job.spec.task][0]]
    value, expected = metric(load_scored(scores)), metric(load_scored(released))
    gain = value - expected if metric.higher_is_better else expected - value
    return gain >= -job.policy.drift.performance_relative_margin * abs(expected)  # not where it is no number


def measure_budgets(job: Job, prepared: Prepared, challenger: Checkpoint, champion: Checkpoint) -> None:
    """What each budget is worth and costs, as for every model of a rollout, and whether that pays.

    Beside the dense model that the champion's budgets were compared with; a dense challenger has no budget.
    """
    dense = dense_beside(job, champion)
    if dense is not None:
        calibrate(job, prepared, challenger, dense)
        tracked_payback(job, cost_at_target(job, challenger, dense), challenger.sha256)


def dense_beside(job: Job, checkpoint: Checkpoint) -> Checkpoint | None:
    """The dense model that a model's budgets were compared with; None where that was never done."""
    if checkpoint.mode == "dense":
        return None
    try:
        known = load_calibration(Path(checkpoint.folder))
        return trained_checkpoint(job.settings, job.spec.name, known.dense)
    except InputError as error:
        logger.warning("budgets are not measured: %s", error)
        return None


def _density(job: Job) -> float:
    return job.plan.target_density


def trained_on(job: Job, champion: Checkpoint) -> tuple[Job, Prepared]:
    """The job and the data with the split that the live model was trained on; its test part let it in."""
    for report in reversed(retrainings(job.settings, job.spec.name)):
        if report.challenger == champion.sha256 and report.split and report.snapshot:
            inner = reading_as(job, champion, report.split)
            return inner, known_before(job, report.snapshot)
    return reading_as(job, champion), source_data(job)


def released_scores(job: Job, champion: Checkpoint) -> Scores:
    """The champion's scores of the windows that it was let in on."""
    inner, prepared = trained_on(job, champion)
    return score(inner, prepared, champion, "test", _density(inner), "champion")


def reading_as(job: Job, champion: Checkpoint, split: Split | None = None) -> Job:
    """The job on another split; where the dense model is live, everything is read, by all who meet it."""
    density = 1.0 if champion.mode == "dense" else job.plan.target_density
    plan = job.plan.model_copy(update={"target_density": density})
    spec = job.spec.model_copy(update={"split": split or job.spec.split, "training": plan})
    return replace(job, spec=spec)


def split_of(job: Job, windows: Windows, seen_until: datetime) -> Split:
    """The newest windows judge, those before them stop the training early, everything else is trained on.

    Raises InputError where too few windows lie after `seen_until`, up to which the champion was trained.
    """
    policy, spec = job.policy.retraining, job.spec
    judged = policy.judged_windows * spec.stride
    held_back = spec.training.validation_windows * spec.stride + judged
    is_shares = isinstance(spec.split.test, float)
    begin = None if policy.data_days is None or is_shares else _days_before(windows, policy.data_days)
    boundary = _share_before if is_shares else _time_before
    split = Split(begin=begin, validation=boundary(windows, held_back), test=boundary(windows, judged))
    newest = Windows(windows.snapshot, spec.model_copy(update={"split": split}), windows.preprocessing)
    first = newest.table["time"].to_numpy()[newest.parts == newest.part_names.index("test")].min()
    if first < np.datetime64(seen_until):
        raise InputError(
            f"{spec.name}: retraining.judged_windows: the newest {policy.judged_windows} windows begin at "
            f"{first}, and what is live has seen everything up to {seen_until}: wait for more rows"
        )
    return split


def _share_before(windows: Windows, num_rows: int) -> float:
    """Share of the rows before the newest `num_rows`, which all entities have their part in."""
    return 1 - num_rows / len(windows.time_us)


def _time_before(windows: Windows, num_rows: int) -> datetime:
    times = np.sort(windows.time_us)
    return np.datetime64(int(times[max(0, len(times) - num_rows)]), "us").item()


def _days_before(windows: Windows, days: float) -> datetime:
    return np.datetime64(int(windows.time_us.max()), "us").item() - timedelta(days=days)


def seen_until(job: Job, champion: Checkpoint) -> datetime:
    """The first instant that the champion's training knew nothing of."""
    inner, prepared = trained_on(job, champion)
    return first_time(inner.windows(prepared), "test")


def first_time(windows: Windows, part: str) -> datetime:
    """Time of the earliest row of a part."""
    rows = windows.parts == windows.part_names.index(part)
    return np.datetime64(int(windows.time_us[rows].min()), "us").item()


# The meeting --------------------------------------------------------------------------------------


def meet(
    job: Job,
    prepared: Prepared,
    part: str,
    challenger: Checkpoint,
    champion: Checkpoint,
    live: Scores,
    baseline: Scores,
) -> tuple[Evaluation, bool]:
    """Challenger and champion on the same windows of a part that neither was trained on.

    Also whether the challenger is live now: a PASS may have to wait for a person.
    """
    scores = score(job, prepared, challenger, part, _density(job), "challenger")
    measured = steady_kpis(job, prepared, challenger, part)
    references: dict[Reference, Scores] = {"champion": live, "baseline": baseline}
    evaluation = judge_stage(job, prepared, "steady", scores, references, measured)
    lineup = Lineup(candidate=challenger, champion=champion)
    state = decide(job, lineup, evaluation.verdict, _density(job))
    is_live = challenger.sha256 in {release.checkpoint for release in state.releases}
    return evaluation, evaluation.verdict.outcome is Outcome.PASS and is_live


def _meet_on_newest(
    job: Job, prepared: Prepared, challenger: Checkpoint, champion: Checkpoint
) -> tuple[Evaluation, bool]:
    """The baseline is fitted anew too: on the same newer data as the challenger."""
    [baseline] = [each for each in score_baselines(job, prepared) if each.part == "test"]
    live = score(job, prepared, champion, "test", _density(job), "champion")
    return meet(job, prepared, "test", challenger, champion, live, baseline)


def ending(evaluation: Evaluation, is_live: bool) -> tuple[Ended, str]:
    """What a meeting came to, and why in words."""
    verdict = evaluation.verdict
    reasons = "; ".join(verdict.reasons)
    if verdict.outcome is Outcome.PASS:
        return ("promoted", "every required check passed") if is_live else ("held", "it waits for a person")
    return ("held" if verdict.outcome is Outcome.HOLD else "dropped"), reasons


# What is kept -------------------------------------------------------------------------------------


def _kept(settings: Settings, report: RetrainingReport) -> RetrainingReport:
    path = _folder(settings, report.dataset) / f"{report.started_at.replace(':', '')}.json"
    replace_file(path, report.model_dump_json(indent=1).encode() + b"\n")
    return report


def _folder(settings: Settings, dataset: str) -> Path:
    return dataset_folder(settings, dataset) / "retrainings"


def _read(path: Path) -> RetrainingReport:
    try:
        return RetrainingReport.model_validate_json(path.read_bytes())
    except ValueError:
        raise InputError(f"{path}: not a whole report of a retraining; remove it") from None
