"""What a batch of new windows looks like beside those the live model was trained and released on."""

import numpy as np

from pipelines.data.windows import Windows
from pipelines.evaluation import TASK_METRICS, resampling
from pipelines.job import Job
from pipelines.scoring import Scores, load_scored
from validation.drift import DriftReport, PerformanceChange, detect_drift
from validation.kpis import KINDS
from validation.statistics import METRICS, Scored, unpaired_interval


def inspect(
    job: Job, reference: Windows, windows: Windows, part: str, scores: Scores | None, released: Scores
) -> DriftReport:
    """`part` of `windows` against the training part of `reference`: columns, predictions, performance.

    `scores` are the live model's of that part, None where it holds no whole window; `released` those it was
    released with.
    """
    then = load_scored(released)
    now = load_scored(scores) if scores else None
    return detect_drift(
        columns_of(reference, "train"),
        columns_of(windows, part),
        job.policy.drift,
        categorical=windows.spec.categorical,
        predictions=(_said(then), _said(now)) if now else None,
        performance=_change(job, now, then) if now else None,
    )


def columns_of(windows: Windows, part: str) -> dict[str, np.ndarray]:
    """The model's columns on the rows of a part."""
    rows = windows.parts == windows.part_names.index(part)
    names = (*windows.spec.numeric, *windows.spec.categorical)
    return {name: windows.column(name)[rows] for name in names}


def _said(scored: Scored) -> np.ndarray:
    return scored.scores[scored.mask > 0]


def _change(job: Job, now: Scored, then: Scored) -> PerformanceChange | None:
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
