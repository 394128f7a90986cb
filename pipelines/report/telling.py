"""From the records of a rollout, a retraining or a batch to the story of its page."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.batches import known_rows, rows_of
from pipelines.budgets import Calibration, load_calibration
from pipelines.calibration import cost_at_target
from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.fingerprint import environment
from pipelines.job import Job, Prepared
from pipelines.monitor import MonitorReport, reports, windows_after
from pipelines.payback import tracked_payback
from pipelines.preparation import known_before
from pipelines.release import trained_checkpoint
from pipelines.replay import Month
from pipelines.report.readings import read_windows
from pipelines.report.story import Event, Lineage, Period, Story, WindowRead
from pipelines.retraining import RetrainingReport, dense_beside, reading_as, retrainings, trained_on
from pipelines.rollout import current_state
from pipelines.scoring import Scores
from pipelines.settings import Settings
from pipelines.summary import RolloutSummary
from validation.errors import InputError
from validation.gates import Outcome

_LOCAL = "http://127.0.0.1:5000"  # where `dankai ui` shows the runs, unless told otherwise
_REMEMBERED = 60  # batches and trainings before a page's own that it shows


def of_rollout(job: Job, summary: RolloutSummary, run_id: str) -> Story:
    """The climb, and the months after it."""
    climbed = [each for each in summary.evaluations if each.stage != "steady"]
    last = climbed[-1].candidate if climbed else None
    judged = trained_checkpoint(job.settings, job.spec.name, last.scored) if last else None
    windows = _read(job, judged, job.windows(summary.prepared), last) if judged and last else ()
    pilot = next((each.candidate for each in climbed if each.stage == "pilot"), None)
    repaid = tracked_payback(job, summary.costs[0], pilot.scored) if summary.costs and pilot else None
    return Story(
        kind="rollout",
        dataset=summary.dataset,
        description=summary.description,
        task=job.spec.task,
        finished_at=summary.finished_at,
        seconds=summary.seconds,
        outcome=climbed[-1].verdict.outcome.value if climbed else "missing",
        state=summary.state,
        environment=summary.environment,
        policy=summary.policy,
        min_timings=summary.min_timings,
        density=last.density if last else None,
        evaluations=summary.evaluations,
        how_good=summary.how_good,
        calibration=summary.calibration,
        costs=summary.costs,
        windows=windows,
        periods=tuple(map(_of_month, summary.months)),
        data=summary.prepared.report,
        payback=repaid,
        prices=job.policy.cost,
        bundle=summary.bundle,
        lineage=_lineage(job, summary.prepared, judged, run_id, job.settings.home).model_copy(
            update=_of_gate(summary, job.settings.home)
        ),
    )


def of_retraining(job: Job, report: RetrainingReport) -> Story:
    """A challenger, its meeting with what was live, and what led there."""
    met, name = report.evaluation, report.dataset
    windows: tuple[WindowRead, ...] = ()
    made, prepared, money = None, None, dict[str, Any]()
    if report.challenger and report.snapshot and met and met.candidate:
        champion = trained_checkpoint(job.settings, name, report.champion)
        made = trained_checkpoint(job.settings, name, report.challenger)
        prepared = known_before(job, report.snapshot)
        inner = reading_as(job, champion, report.split)
        windows = _read(inner, made, inner.windows(prepared), met.candidate)
        money = _money(inner, made)
    folder = retraining_folder(job, report)
    verdict = {"verdict": met.verdict.digest(), "policy": met.verdict.policy_digest} if met else {}
    return _blank(job, folder, prepared, made, report.run_id, verdict).model_copy(
        update={
            "kind": "retraining",
            "finished_at": report.finished_at,
            "seconds": report.train_seconds or None,
            "reason": report.reason,
            "outcome": report.outcome,
            "why": (report.why,),
            "density": met.candidate.density if met and met.candidate else None,
            "evaluations": (met,) if met else (),
            "windows": windows,
            **money,
            "periods": history(job.settings, name, report.started_at),
        }
    )


def of_batch(job: Job, report: MonitorReport) -> Story:
    """A batch, beside those that were looked at before it."""
    champion = trained_checkpoint(job.settings, report.dataset, report.champion)
    windows: tuple[WindowRead, ...] = ()
    if report.scores is not None and report.value is not None:
        inner, prepared = trained_on(job, champion)
        windows = _read(inner, champion, _windows_of_batch(inner, prepared, report), report.scores)
    folder, arrival = batch_folder(job, report), report.arrival
    about = {"snapshot": report.batch, "rows": arrival.num_rows, "docs": ""}
    about |= {"start": str(arrival.start or ""), "end": str(arrival.end or "")}
    if report.data:
        about["docs"] = _relative(report.data.docs_uri, folder)
    return _blank(job, folder, None, champion, report.run_id, about).model_copy(
        update={
            "kind": "monitor",
            "finished_at": arrival.received_at,
            "outcome": report.decision,
            "why": report.reasons,
            "density": report.scores.density if report.scores else None,
            "windows": windows,
            "groups": report.groups,
            "periods": history(job.settings, report.dataset, report.batch),
            "data": report.data,
        }
    )


def retraining_folder(job: Job, report: RetrainingReport) -> Path:
    return job.folder / "retrainings" / report.started_at.replace(":", "")


def batch_folder(job: Job, report: MonitorReport) -> Path:
    return job.folder / "monitor" / report.batch[:16]


# Parts --------------------------------------------------------------------------------------------


def _blank(
    job: Job,
    folder: Path,
    prepared: Prepared | None,
    checkpoint: Checkpoint | None,
    run_id: str,
    lineage: dict,
) -> Story:
    """What every page says of dataset, machine and origin."""
    return Story(
        kind="monitor",
        dataset=job.spec.name,
        description=job.spec.description,
        task=job.spec.task,
        finished_at="",
        outcome="missing",
        state=current_state(job.log, job.spec.name),
        environment=environment(),
        policy=job.policy.digest(),
        min_timings=job.policy.min_timings,
        calibration=_calibration(checkpoint),
        prices=job.policy.cost,
        lineage=_lineage(job, prepared, checkpoint, run_id, folder).model_copy(update=lineage),
    )


def _read(job: Job, checkpoint: Checkpoint, windows: Windows, scores: Scores) -> tuple[WindowRead, ...]:
    density = 1.0 if scores.density is None else scores.density
    inputs = {"checkpoint": checkpoint.sha256, "scores": scores.sha256, "part": scores.part}

    def compute() -> list[WindowRead]:
        with job.reporting("looking at what was read"):
            return list(read_windows(checkpoint, windows, scores, density))

    return tuple(job.once("windows-read", inputs | {"density": density}, list[WindowRead], compute))


def _money(job: Job, made: Checkpoint) -> dict[str, Any]:
    """What a challenger costs at the budget it was judged at, and whether that pays: kept by its training."""
    dense = dense_beside(job, made)
    if dense is None:
        return {}
    cost = cost_at_target(job, made, dense)
    return {"costs": (cost,), "payback": tracked_payback(job, cost, made.sha256)}


def _windows_of_batch(job: Job, prepared: Prepared, report: MonitorReport) -> Windows:
    known = known_rows(job.settings, prepared.snapshot, but=report.arrival)
    rows = rows_of(job.settings, report.arrival)
    return windows_after(job.windows(prepared), known, rows, report.arrival)


def _calibration(checkpoint: Checkpoint | None) -> Calibration | None:
    """Where the model was calibrated: a dense one has no budgets."""
    if checkpoint is None:
        return None
    try:
        return load_calibration(Path(checkpoint.folder))
    except InputError:
        return None


def _of_month(month: Month) -> Period:
    return Period(
        label=month.month,
        time=month.month,
        decision=month.drift.decision,
        metric=month.metric,
        value=month.value,
        drift=month.drift,
        reasons=month.drift.reasons,
        event=_followed(month),
    )


def _followed(month: Month) -> Event:
    """What came of a month; a challenger that met in it is told before the training that followed."""
    if month.rolled_back:
        return "rolled_back"
    if month.evaluation is None:
        return "trained" if month.retrained else ""
    ended: dict[Outcome, Event] = {Outcome.PASS: "promoted", Outcome.HOLD: "held", Outcome.FAIL: "dropped"}
    return ended[month.evaluation.verdict.outcome]


def history(settings: Settings, dataset: str, this: str) -> tuple[Period, ...]:
    """Batches and trainings up to now, by the time they came; `this` is the page's own."""
    periods = [_of_batch(each, this) for each in reports(settings, dataset)]
    periods += [_of_training(each, this) for each in retrainings(settings, dataset)]
    return tuple(sorted(periods, key=lambda each: each.time)[-_REMEMBERED:])


def _of_batch(report: MonitorReport, this: str) -> Period:
    start = report.arrival.start
    return Period(
        label=f"{start:%Y-%m-%d}" if start else report.batch[:8],
        time=report.arrival.received_at,
        decision=report.decision,
        metric=report.metric,
        value=report.value,
        drift=report.drift,
        reasons=report.reasons,
        is_this=report.batch == this,
    )


def _of_training(report: RetrainingReport, this: str) -> Period:
    return Period(
        label=f"{report.started_at[:10]} {report.started_at[11:19]}",
        time=report.started_at,
        event=report.outcome,
        reasons=(report.why,),
        is_this=report.started_at == this,
    )


def _of_gate(summary: RolloutSummary, folder: Path) -> dict[str, str]:
    climbed = [each for each in summary.evaluations if each.stage != "steady"]
    found = {"policy": summary.policy}
    if climbed:
        found["verdict"] = climbed[-1].verdict.digest()
    if summary.bundle:
        place = _relative(str(Path(summary.bundle.folder) / "manifest.json"), folder)
        found |= {"bundle": summary.bundle.manifest_sha256, "bundle_place": place}
    return found


def _lineage(
    job: Job, prepared: Prepared | None, checkpoint: Checkpoint | None, run_id: str, folder: Path
) -> Lineage:
    kept: dict[str, Any] = {"policy": job.policy.digest(), "run_id": run_id, "run_url": _page_of(job, run_id)}
    if prepared:
        snapshot = prepared.snapshot
        kept |= {"snapshot": snapshot.content_hash, "rows": snapshot.num_rows}
        kept |= {"start": snapshot.start.isoformat(), "end": snapshot.end.isoformat()}
        kept["docs"] = _relative(prepared.report.docs_uri, folder)
    if checkpoint:
        kept |= {"training_run": checkpoint.run_id, "training_url": _page_of(job, checkpoint.run_id)}
        kept |= {"checkpoint": checkpoint.sha256, "checkpoint_place": _relative(checkpoint.folder, folder)}
    return Lineage(**kept)


def _page_of(job: Job, run_id: str) -> str:
    """Address of a run in MLflow's pages: the server's, or `dankai ui`'s."""
    return job.tracker.page(run_id, _LOCAL) or "" if run_id else ""


def _relative(path: str, folder: Path) -> str:
    """As a link from a page in `folder`: what lies beside it moves with it."""
    return quote(Path(os.path.relpath(path, folder)).as_posix()) if path else ""
