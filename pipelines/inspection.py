"""What a batch of new windows looks like beside those that the live model was trained and released on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.evaluation import TASK_METRICS, resampling
from pipelines.job import Job, Prepared
from pipelines.scoring import Scores, load_scored
from pipelines.selection import SelectionProfile, compare_profiles, profile
from validation.drift import DriftPolicy, DriftReport, PerformanceChange, detect_drift
from validation.effects import FEWEST_STRETCHES, Baseline, Effect
from validation.estimation import Estimate, estimate_auroc
from validation.kpis import KINDS
from validation.statistics import METRICS, Scored, unpaired_interval
from validation.triage import Fault, Habits

_YEAR = timedelta(days=364)  # whole weeks, so that weekdays fall on weekdays
_AROUND = timedelta(days=21)
_PIECES = 8  # stretches of the windows of a release, to say what predictions usually differ by
_COVERED = 0.8  # share of the weeks of last year that have to be known


@dataclass(frozen=True)
class Released:
    """How the live model answered when it was let in."""

    scores: Scores
    profile: SelectionProfile | None
    """None for a model that reads everything."""


@dataclass(frozen=True)
class Seen:
    """What was said of earlier batches, oldest first."""

    reports: Sequence[DriftReport] = ()
    errors: Sequence[float] = field(default_factory=tuple)
    """Absolute errors of estimates whose outcomes are known by now."""


def inspect(
    job: Job,
    reference: Windows,
    windows: Windows,
    part: str,
    champion: Checkpoint,
    scores: Scores | None,
    released: Released,
    seen: Seen,
) -> DriftReport:
    """`part` of `windows` beside the training part of `reference`, or the same weeks of the year before.

    `scores` are the live model's of that part; None where it holds no whole window.
    """
    batch = rows_of_part(windows, part)
    basis, name = _reference_rows(reference, windows.time_us[batch], job.policy.drift)
    levels = Levels.in_rows(reference, basis)
    compared = columns_of(windows, batch, levels)
    effects = _baseline(columns_of(reference, basis, levels), reference, basis, windows, batch).compare(
        compared
    )
    then, now = load_scored(released.scores), load_scored(scores) if scores else None
    if now is not None:
        effects += _of_predictions(said(then, job), said(now, job))
    if now is not None and released.profile is not None:
        read = profile(champion, windows, part, job.plan.target_density)
        effects += compare_profiles(released.profile, read)
    return detect_drift(
        effects,
        (len(basis), len(batch)),
        job.policy.drift,
        earlier=seen.reports,
        performance=performance_of(job, now, then) if now else None,
        estimate=_estimate(job, now, then, seen.errors) if now else None,
        reference=name,
    )


def faults_of(reference: Windows, windows: Windows, part: str) -> list[Fault]:
    """Faults of the data in `part` that look like drift."""
    spec = reference.spec
    train, batch = rows_of_part(reference, "train"), rows_of_part(windows, part)
    several = ("entity",) if len(reference.offsets) > 2 else ()
    names = dict.fromkeys((*several, *spec.slices))
    old, new = (
        {name: each.column(name)[rows] for name in spec.numeric}
        for each, rows in ((reference, train), (windows, batch))
    )
    habits = Habits.of(old, {name: reference.column(name)[train] for name in names})
    return habits.faults(new, {name: windows.column(name)[batch] for name in names})


def rows_of_part(windows: Windows, part: str) -> NDArray[np.int64]:
    """Rows of a part, in the table's order."""
    return np.nonzero(windows.parts == windows.part_names.index(part))[0]


def columns_of(
    windows: Windows, rows: NDArray[np.int64], levels: "Levels | None" = None
) -> dict[str, np.ndarray]:
    """What is compared: the model's columns, and the outcomes known.

    With `levels` numeric columns are counted from their own entity's, so that one machine's shift is not lost
    in the differences between machines.
    """
    spec = windows.spec
    outcome = spec.target if spec.task == "event" else ()
    columns = {name: windows.column(name)[rows] for name in (*spec.numeric, *outcome, *spec.categorical)}
    if levels is not None:
        entities = windows.column("entity")[rows].astype(str)
        columns |= {name: levels.relative(name, columns[name], entities) for name in spec.numeric}
    return columns


@dataclass(frozen=True)
class Levels:
    """Mean and standard deviation of every numeric column of every entity in the reference."""

    of: Mapping[tuple[str, str], tuple[float, float]]

    @classmethod
    def in_rows(cls, windows: Windows, rows: NDArray[np.int64]) -> "Levels | None":
        """None where there is but one entity."""
        entities = windows.column("entity")[rows].astype(str)
        names = np.unique(entities)
        if len(names) < 2:
            return None
        found = {}
        for column in windows.spec.numeric:
            values = windows.column(column)[rows].astype(np.float64)
            for name in names:
                own = values[(entities == name) & np.isfinite(values)]
                found[column, name] = (float(own.mean()), float(own.std()) or 1.0) if len(own) else (0.0, 1.0)
        return cls(found)

    def relative(self, column: str, values: np.ndarray, entities: np.ndarray) -> np.ndarray:
        """An entity that the reference does not know stays as it is."""
        known = {name: self.of.get((column, name), (0.0, 1.0)) for name in np.unique(entities)}
        means = np.array([known[name][0] for name in entities])
        return (values - means) / np.array([known[name][1] for name in entities])


def said(scored: Scored, job: Job) -> np.ndarray:
    """All scores asked for, whether or not their outcome is known."""
    return scored.scores[scored.mask > 0] if job.spec.task == "detect" else scored.scores.ravel()


def _reference_rows(
    reference: Windows, batch_us: NDArray[np.int64], policy: DriftPolicy
) -> tuple[NDArray[np.int64], str]:
    """Rows of the same weeks a year ago, where those are known; else of the training part."""
    if policy.reference == "same_weeks":
        first = _instant(batch_us.min()) - _YEAR - _AROUND
        last = _instant(batch_us.max()) - _YEAR + _AROUND
        times = reference.time_us
        rows = np.nonzero((times >= _us(first)) & (times <= _us(last)) & (times < batch_us.min()))[0]
        covered = np.ptp(times[rows]) / (_us(last) - _us(first)) if len(rows) else 0.0
        if len(rows) >= policy.min_rows and covered >= _COVERED:
            return rows, "same weeks of the year before"
    return rows_of_part(reference, "train"), "training"


def _baseline(
    columns: dict[str, np.ndarray],
    reference: Windows,
    basis: NDArray[np.int64],
    windows: Windows,
    batch: NDArray[np.int64],
) -> Baseline:
    """Stretches as long as the batch, at least some; those that are cut off at an end count to none."""
    times = reference.time_us[basis]
    span = max(1, min(int(np.ptp(windows.time_us[batch])), int(np.ptp(times)) // FEWEST_STRETCHES))
    blocks = (times - times.min()) // span
    counts = np.bincount(blocks)
    blocks = np.where(counts[blocks] >= 0.5 * np.median(counts[counts > 0]), blocks, -1)
    outcomes = reference.spec.target if reference.spec.task == "event" else ()
    return Baseline.of(columns, blocks, reference.spec.categorical, outcomes)


def _of_predictions(then: np.ndarray, now: np.ndarray) -> list[Effect]:
    pieces = np.arange(len(then)) * _PIECES // len(then)
    compared = Baseline.of({"prediction": then}, pieces, ()).compare({"prediction": now})
    return [effect.model_copy(update={"kind": "predictions"}) for effect in compared]


def performance_of(job: Job, now: Scored, then: Scored) -> PerformanceChange | None:
    """None where the outcomes are not known yet."""
    metric = METRICS[TASK_METRICS[job.spec.task][0]]
    if not np.isfinite(metric(now)):
        return None
    how = resampling(job.policy, job.spec, now.num_windows)
    return PerformanceChange(
        metric=metric.name,
        higher_is_better=KINDS[metric.name].higher_is_better,
        reference_value=metric(then),
        change=unpaired_interval(metric, now, then, **how),
    )


def _estimate(job: Job, now: Scored, then: Scored, errors: Sequence[float]) -> Estimate | None:
    """Of a ranking; a forecast's outcomes come with its rows, and nothing has to be guessed."""
    if TASK_METRICS[job.spec.task][0] != "auroc":
        return None
    return estimate_auroc(then, said(now, job), errors)


def _instant(microseconds: np.integer) -> datetime:
    return np.datetime64(int(microseconds), "us").item()


def _us(instant: datetime) -> int:
    return int(np.datetime64(instant, "us").astype(np.int64))


def released_profile(job: Job, prepared: Prepared, champion: Checkpoint) -> SelectionProfile | None:
    """What the live model read in the dataset's test part; None where it reads everything."""
    density = job.plan.target_density
    if champion.mode == "dense":
        return None

    def compute() -> SelectionProfile:
        with job.reporting("looking at what is read"):
            return profile(champion, job.windows(prepared), "test", density)

    inputs = {"prepared": prepared, "checkpoint": champion.sha256, "density": density, "spec": job.spec}
    return job.once("profile", inputs, SelectionProfile, compute)
