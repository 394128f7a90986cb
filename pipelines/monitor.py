"""A monitor run: the newest batch is checked, scored with what is live, and compared with what was.

It decides none, watch, retrain or fault. A fault of the data goes to quarantine with an alert, and never asks
for a training. A batch that was looked at before is not looked at again: its report is given once more.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.batches import (
    Batch,
    arrived,
    clock,
    fault_of_arrival,
    in_order,
    keep_batch,
    known_rows,
    known_spans,
    outcome_columns,
    read_batch,
    rows_of,
    set_aside,
)
from pipelines.bias import watch_groups
from pipelines.checkpoint import Checkpoint
from pipelines.data.contract import contract_of
from pipelines.data.windows import FIXED_PARTS, Windows
from pipelines.evaluation import TASK_METRICS, task_value
from pipelines.files import exclusive_lock, replace_file
from pipelines.inspection import Released, Seen, faults_of, inspect, released_profile
from pipelines.job import Job, dataset_folder
from pipelines.preparation import source_data
from pipelines.release import live_checkpoint
from pipelines.retraining import released_scores, trained_on
from pipelines.scoring import Scores, load_scored, score_model
from pipelines.settings import Settings
from pipelines.tracking import track_batch
from validation.data import DataReport, validate
from validation.drift import DriftReport
from validation.errors import InputError
from validation.gates import Outcome
from validation.kpis import Kpi
from validation.record import Record
from validation.statistics import Interval

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger(__name__)
Decided = Literal["none", "watch", "retrain", "fault"]
PART = "batch"


class MonitorReport(Record):
    """What one batch looked like to the model that was live, and what follows."""

    dataset: str
    batch: str
    """Content hash of the batch."""
    decision: Decided
    reasons: tuple[str, ...]
    arrival: Batch
    champion: str
    """SHA-256 of the weights that were live."""
    data: DataReport | None = None
    drift: DriftReport | None = None
    metric: str = ""
    value: Interval | None = None
    """Realised; None while outcomes are unknown."""
    scores: Scores | None = None
    """Of its windows, by what was live; None where no whole window ends in it."""
    groups: tuple[Kpi, ...] = ()
    """How good it was in every group, and what it missed of each (pipelines.bias)."""
    quarantine: str | None = None
    """Where the files of a faulty batch lie."""
    run_id: str = ""
    repeated: bool = False
    """It had been looked at before; nothing was counted twice."""


def monitor_batch(job: Job, batch_path: Path) -> MonitorReport:
    """Look at the batch at `batch_path`; what comes of it is kept, and its rows are known from then on.

    Raises InputError where there is no batch, or nothing is live.
    """
    with exclusive_lock(dataset_folder(job.settings, job.spec.name) / "monitor.lock"):
        champion = live_checkpoint(job.settings, job.spec.name)
        batch = arrived(batch_path, job.spec)
        if earlier := find_report(job.settings, batch):
            return earlier.model_copy(update={"repeated": True})
        return _kept(job, _looked_at(job, champion, batch))


def look_again(job: Job, batch: Batch) -> MonitorReport:
    """Look at a batch that is believed once more, now that more is known of it."""
    champion, prepared = live_checkpoint(job.settings, job.spec.name), source_data(job)
    earlier = find_report(job.settings, batch)
    blank = earlier or _blank(batch, champion)
    known = known_rows(job.settings, prepared.snapshot, but=batch)
    return _kept(job, _compared(job, champion, blank, rows_of(job.settings, batch), known))


def reports(settings: Settings, dataset: str) -> list[MonitorReport]:
    """Every batch that was looked at, in order of arrival."""
    paths = _folder(settings, dataset).glob("*.json")
    read = [MonitorReport.model_validate_json(path.read_bytes()) for path in paths]
    return sorted(read, key=lambda report: report.arrival.received_at)


def find_report(settings: Settings, batch: Batch) -> MonitorReport | None:
    """What was said of the very same files before."""
    path = _path(settings, batch)
    return MonitorReport.model_validate_json(path.read_bytes()) if path.exists() else None


def _blank(batch: Batch, champion: Checkpoint) -> MonitorReport:
    """Of a batch of which nothing is said yet."""
    return MonitorReport(
        dataset=batch.dataset,
        batch=batch.content_hash,
        decision="none",
        reasons=(),
        arrival=batch,
        champion=champion.sha256,
    )


def _looked_at(job: Job, champion: Checkpoint, batch: Batch) -> MonitorReport:
    prepared, blank = source_data(job), _blank(batch, champion)
    try:
        known = known_rows(job.settings, prepared.snapshot, but=batch)
        rows = read_batch(Path(batch.source), job.spec, known)
    except InputError as error:
        return _faulty(job, blank, str(error))
    spans = known_spans(job.settings, prepared.snapshot, but=batch)
    if fault := fault_of_arrival(rows, spans, clock(), job.spec.step is not None):
        return _faulty(job, blank, fault)
    return _believed(job, champion, blank, rows, known)


def _believed(
    job: Job,
    champion: Checkpoint,
    blank: MonitorReport,
    rows: "pl.DataFrame",
    known: "pl.DataFrame",
) -> MonitorReport:
    """Its rows came in order and at their time: are they sound, and what do they look like?"""
    start, end = rows["time"].min(), rows["time"].max()
    is_late = end <= known["time"].max()  # type: ignore[operator]
    about = {"num_rows": len(rows), "start": start, "end": end, "is_late": is_late}
    arrival = blank.arrival.model_copy(update=about)
    report = blank.model_copy(update={"arrival": arrival})
    try:
        data = _validated(job, arrival, rows)
    except InputError as error:
        return _faulty(job, report, str(error))
    report = report.model_copy(update={"data": data})
    if data.outcome is not Outcome.PASS:
        return _faulty(job, report, f"its rows are not sound: {data.reason}")
    if is_late:
        keep_batch(job.settings, arrival, rows)
        words = f"late: rows after {end} were known already; kept for trainings, decides nothing"
        return report.model_copy(update={"reasons": (words,)})
    report = _compared(job, champion, report, rows, known)
    if report.decision != "fault":
        keep_batch(job.settings, arrival, rows)
    return report


def _compared(
    job: Job,
    champion: Checkpoint,
    report: MonitorReport,
    rows: "pl.DataFrame",
    known: "pl.DataFrame",
) -> MonitorReport:
    inner, prepared = trained_on(job, champion)
    reference = inner.windows(prepared)
    windows = windows_after(reference, known, rows, report.arrival)
    if faults := faults_of(reference, windows, PART):
        return _faulty(job, report, "; ".join(f"{fault.kind}: {fault.words}" for fault in faults))
    scores, before = _scored(inner, champion, windows), _before(job, champion, report.arrival)
    released = Released(released_scores(job, champion), released_profile(inner, prepared, champion))
    drift = inspect(inner, reference, windows, PART, champion, scores, released, _seen(before))
    value = _value(inner, scores) if scores else None
    groups = watch_groups(inner, champion, windows, PART, scores, value is not None) if scores else ()
    gap = missing_before(reference, known, rows)
    reasons = (*drift.reasons, *([gap] if gap else []))
    found = {"decision": drift.decision, "reasons": reasons, "drift": drift, "value": value}
    found |= {"scores": scores}
    return report.model_copy(update={**found, "groups": groups, "metric": TASK_METRICS[job.spec.task][0]})


def _before(job: Job, champion: Checkpoint, batch: Batch) -> list[MonitorReport]:
    """What was said, of the model that is live now, about batches whose rows came before."""
    every = reports(job.settings, job.spec.name)
    return [
        each
        for each in every
        if each.champion == champion.sha256 and each.arrival.start and each.arrival.start < batch.start  # type: ignore[operator]
    ]


def _seen(before: list[MonitorReport]) -> Seen:
    """Of the batches that were compared, in order of their rows."""
    compared = sorted((each for each in before if each.drift), key=lambda each: str(each.arrival.start))
    estimates = [(each.drift.estimate, each.value) for each in compared if each.drift]
    errors = [abs(guess.value - known.value) for guess, known in estimates if guess and known]
    return Seen([each.drift for each in compared if each.drift], errors)


def windows_after(reference: Windows, known: "pl.DataFrame", rows: "pl.DataFrame", batch: Batch) -> Windows:
    """Windows whose horizon lies in the batch, with as much before it as a lookback needs.

    Where rows of a regular series are missing in between, they read nothing from before.
    """
    import numpy as np
    import polars as pl

    spec = reference.spec
    tail = known.filter(pl.col("time") <= rows["time"].min()).group_by("entity", maintain_order=True)
    before = tail.tail(spec.lookback).with_columns(is_new=pl.lit(False))
    if missing_before(reference, known, rows):
        before = before.clear()
    table = in_order(pl.concat([before, rows.with_columns(is_new=pl.lit(True))], how="vertical_relaxed"))
    numbers = np.where(table["is_new"].to_numpy(), len(FIXED_PARTS), 0).astype(np.int16)
    snapshot = reference.snapshot.model_copy(update={"content_hash": batch.content_hash})
    parts = (numbers, (*FIXED_PARTS, PART))
    return Windows(snapshot, spec, reference.preprocessing, table.drop("is_new"), parts)


def missing_before(reference: Windows, known: "pl.DataFrame", rows: "pl.DataFrame") -> str:
    """What lies between the known rows of a regular series and the batch, in words, or ""."""
    import polars as pl

    start, step = rows["time"].min(), reference.spec.step_seconds
    last = known.filter(pl.col("time") < start)["time"].max()
    is_gap = step is not None and last is not None and (start - last).total_seconds() > step  # type: ignore[operator]
    return f"rows between {last} and {start} are missing: nothing before was read" if is_gap else ""


def _scored(job: Job, champion: Checkpoint, windows: Windows) -> Scores | None:
    """None where not one whole window ends in the batch."""
    try:
        windows.cutoffs(PART)
    except InputError:
        return None
    density, folder = job.plan.target_density, job.folder / "scores"
    return score_model(champion, windows, PART, density, "live", folder, job.report)


def _value(job: Job, scores: Scores) -> Interval | None:
    found = task_value(load_scored(scores), job.spec, job.policy)
    return found if found.value == found.value else None


def _validated(job: Job, batch: Batch, rows: "pl.DataFrame") -> DataReport:
    """The dataset's own expectations; outcomes may be unknown yet."""
    name = batch.content_hash[:12]
    contract = contract_of(job.spec, f"{job.spec.name}-{name}", may_lack=outcome_columns(job.spec))
    return validate(
        rows.to_pandas(),
        contract,
        job.folder / "data_docs" / f"batch-{name}",
        job.folder / "quarantine" / f"batch-{name}",
        max_quarantined_share=job.policy.data.max_quarantined_share,
    )


def _faulty(job: Job, report: MonitorReport, fault: str) -> MonitorReport:
    """Set the files aside and raise the alarm: a person looks, nothing is trained."""
    arrival = report.arrival.model_copy(update={"fault": fault})
    place = set_aside(job.settings, arrival)
    logger.error("%s: %s: data fault: %s; set aside in %s", job.spec.name, arrival.source, fault, place)
    found = {"decision": "fault", "reasons": (fault,), "arrival": arrival, "quarantine": str(place)}
    return report.model_copy(update=found)


def _kept(job: Job, report: MonitorReport) -> MonitorReport:
    tracked = report.model_copy(update={"run_id": track_batch(job, report)})
    content = tracked.model_dump_json(indent=1).encode() + b"\n"
    replace_file(_path(job.settings, report.arrival), content)
    return tracked


def _path(settings: Settings, batch: Batch) -> Path:
    return _folder(settings, batch.dataset) / f"{batch.content_hash[:16]}.json"


def _folder(settings: Settings, dataset: str) -> Path:
    return dataset_folder(settings, dataset) / "monitor"
