"""The KPIs a gate may ask for: names, directions, units; and the record of one measured value."""

import math
from typing import Any, Literal

from pydantic import Field

from validation.record import Record
from validation.statistics import Interval

Reference = Literal["dense", "baseline", "champion"]
# What a KPI's n counts. Peak memory needs a fresh process per value; "once" is a single exact measurement.
Counted = Literal["windows", "timings", "processes", "once"]

TASK_METRIC = "task_metric"  # a policy's word for the job's own main metric, whatever its task
PAYBACK = "payback_days"


class KpiKind(Record):
    """What a KPI's name means. `lowest` and `highest` bound the values that are possible at all.

    `is_live` marks what can be measured again and again while a model answers; `is_estimated` what is known
    from a sample only, so that its interval has to state its confidence. `quantile` is set where it is one of
    timings: an interval of it takes a certain number of them (validation.samples.samples_needed).
    """

    name: str
    meaning: str
    higher_is_better: bool
    unit: str
    counted: Counted
    lowest: float = 0.0
    highest: float = math.inf
    may_be_infinite: bool = False
    is_live: bool = False
    is_estimated: bool = False
    quantile: float | None = None


def _task(
    name: str, meaning: str, higher_is_better: bool, highest: float = math.inf, unit: str = ""
) -> KpiKind:
    return KpiKind(
        name=name,
        meaning=meaning,
        higher_is_better=higher_is_better,
        unit=unit,
        counted="windows",
        highest=highest,
        is_live=True,
        is_estimated=True,
    )


def _cost(name: str, meaning: str, unit: str, counted: Counted = "timings", **more: Any) -> KpiKind:
    return KpiKind(name=name, meaning=meaning, higher_is_better=False, unit=unit, counted=counted, **more)


def _quantile(name: str, meaning: str, unit: str, quantile: float, **more: Any) -> KpiKind:
    return _cost(name, meaning, unit, quantile=quantile, is_estimated=True, **more)


def _mass(name: str, meaning: str) -> KpiKind:
    return KpiKind(
        name=name, meaning=meaning, higher_is_better=False, unit="", counted="windows", highest=1.0
    )


TASK_KINDS = (
    _task("auroc", "chance that a positive step is ranked above a negative one", True, 1.0),
    _task("average_precision", "area under precision and recall", True, 1.0),
    _task("log_loss", "mean negative log-likelihood", False, unit="nat"),
    _task("mse", "mean squared error of the scaled targets", False),
    _task("mae", "mean absolute error of the scaled targets", False),
)

KINDS: dict[str, KpiKind] = {
    kind.name: kind
    for kind in (
        *TASK_KINDS,
        _quantile("latency_p50_ratio", "median latency, candidate / dense", "x", 0.5),
        _quantile("latency_p99_ratio", "99th percentile of latency, candidate / dense", "x", 0.99),
        _cost("peak_memory_ratio", "peak memory of inference, candidate / dense", "x", "processes"),
        _quantile("latency_p90_ms", "90th percentile of latency", "ms", 0.9, is_live=True),
        _quantile("latency_p99_ms", "99th percentile of latency", "ms", 0.99, is_live=True),
        _cost("error_rate", "requests without a usable answer / requests", "", highest=1.0, is_live=True),
        _cost("peak_memory_bytes", "peak memory of inference", "B", "processes", is_live=True),
        _cost("bundle_bytes", "size of the edge bundle", "B", "once"),
        _cost("parity_share", "parity error of the edge engine / the tolerance derived for it", "", "once"),
        _cost("parity_max_abs_error", "largest difference of a score from the checkpoint's", "", "windows"),
        _cost("seed_spread", "(largest - smallest) / |mean| of the task metric over seeds", "", "once"),
        _cost("quarantined_share", "rows that failed an expectation / rows", "", "once"),
        _cost("density", "key blocks read / key blocks there are", "", "windows"),
        _mass("unread_mass", "share of dense attention's mass on blocks that were read as summaries only"),
        _mass(
            "missed_mass", "share of dense attention's mass that neither exact reading nor summaries carry"
        ),
        KpiKind(
            name="largest_gap",
            meaning="largest difference of the task metric between two groups of a slice column",
            higher_is_better=False,
            unit="",
            counted="windows",
            is_estimated=True,
        ),
        KpiKind(
            name="shadow_disagreement",
            meaning="mean difference of the answers to real requests, candidate against incumbent",
            higher_is_better=False,
            unit="",
            counted="windows",
            highest=1.0,
            is_estimated=True,
        ),
        KpiKind(
            name="canary_error_rate",
            meaning="share of real requests that the incumbent answered and the candidate did not",
            higher_is_better=False,
            unit="",
            counted="windows",
            highest=1.0,
            is_estimated=True,
        ),
        _cost(
            "canary_latency_ratio",
            "median over real requests of latency, candidate / incumbent",
            "x",
            "windows",
            is_estimated=True,
        ),
        KpiKind(
            name="selection_recall",
            meaning="share of dense attention's mass that falls on the blocks read",
            higher_is_better=True,
            unit="",
            counted="windows",
            highest=1.0,
            is_estimated=True,
        ),
        KpiKind(
            name=PAYBACK,
            meaning="days until the measured saving has paid for the change; infinite when it never does",
            higher_is_better=False,
            unit="d",
            counted="once",
            may_be_infinite=True,
        ),
    )
}


class Kpi(Record):
    """One measured value with its interval.

    With `versus`, value and interval are the paired difference subject - reference on the same windows, and
    `reference_value` is the reference's own metric there (a relative margin is a share of it).
    `slice` is "" for all steps, else "column=group". n counts what KpiKind.counted says; in a slice, the
    windows that inform the metric. `confidence` is that of the two-sided interval (None: exact, or the range
    seen); `joint_low` and `joint_high` are the ends of a band that holds, at the same confidence, for all
    groups of a slice check at once. `checkpoint`, `snapshot`, `reference_checkpoint` are the digests of what
    was measured, `measured_at` is when, at the earliest (ISO 8601, UTC; None: not known, which proves nothing
    where a policy limits the age of evidence).
    """

    name: str
    value: float
    low: float
    high: float
    n: int = Field(ge=0)
    checkpoint: str
    snapshot: str
    confidence: float | None = None
    joint_low: float | None = None
    joint_high: float | None = None
    slice: str = ""
    versus: Reference | None = None
    reference_value: float | None = None
    reference_checkpoint: str | None = None
    measured_at: str | None = None

    @property
    def unit(self) -> str:
        return KINDS[self.name].unit if self.name in KINDS else ""


def kpi(
    name: str,
    measured: Interval | float,
    *,
    checkpoint: str,
    snapshot: str,
    slice: str = "",
    joint: Interval | None = None,
    versus: Reference | None = None,
    reference_value: float | None = None,
    reference_checkpoint: str | None = None,
    measured_at: str | None = None,
) -> Kpi:
    """A Kpi from an interval, or from an exact number (a file's size), which is its own interval."""
    if name not in KINDS:
        raise KeyError(f"no KPI is called {name!r}; known: {', '.join(KINDS)}")
    if not isinstance(measured, Interval):
        measured = Interval(value=measured, low=measured, high=measured, n=1)
    return Kpi(
        name=name,
        value=measured.value,
        low=measured.low,
        high=measured.high,
        n=measured.n,
        confidence=measured.confidence,
        joint_low=joint.low if joint else None,
        joint_high=joint.high if joint else None,
        checkpoint=checkpoint,
        snapshot=snapshot,
        slice=slice,
        versus=versus,
        reference_value=reference_value,
        reference_checkpoint=reference_checkpoint,
        measured_at=measured_at,
    )
