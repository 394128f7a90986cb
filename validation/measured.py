"""What each stage measures: a policy that asks it for anything else could never pass, and is refused."""

from collections.abc import Iterable
from typing import NamedTuple

from validation.gates import Stage
from validation.kpis import KINDS, TASK_KINDS, TASK_METRIC, Reference
from validation.thresholds import WORST, Threshold


class Measured(NamedTuple):
    """The KPIs of a stage beside the task metrics, and whom the candidate's scores are compared with."""

    kpis: frozenset[str]
    references: tuple[Reference, ...]


_SERVED = frozenset({"error_rate", "parity_max_abs_error", "latency_p90_ms"})
_ON_DEVICE = frozenset({"latency_p99_ms", "peak_memory_bytes", "bundle_bytes", "parity_share"})
_COST = frozenset({"latency_p50_ratio", "latency_p99_ratio", "peak_memory_ratio", "payback_days"})
_CANARY = frozenset({"canary_error_rate", "shadow_disagreement", "canary_latency_ratio"})
_BETWEEN_GROUPS = frozenset({"largest_gap"})
_PILOT = _COST | _CANARY | _SERVED | {"selection_recall"}

MEASURED: dict[Stage, Measured] = {
    "pilot": Measured(_PILOT | _BETWEEN_GROUPS, ("dense", "baseline", "champion")),
    "training": Measured(_PILOT | _BETWEEN_GROUPS | {"seed_spread"}, ("dense", "baseline", "champion")),
    "edge": Measured(
        _ON_DEVICE | _BETWEEN_GROUPS | {"error_rate", "parity_max_abs_error"}, ("dense", "baseline")
    ),
    "steady": Measured(_SERVED | _BETWEEN_GROUPS, ("champion", "baseline")),
}
_TASK = {TASK_METRIC, *(kind.name for kind in TASK_KINDS)}
_BY_GROUP = {TASK_METRIC, "auroc", "mse"}  # the main metric of a job, whatever its task
_BY_STEP = "share"  # of the ladder: what real requests said is told apart by it


def never_measured(stage: Stage, threshold: Threshold) -> Iterable[str]:
    """Why a threshold of a stage could never be judged, and what to ask instead."""
    measured, name = MEASURED[stage], threshold.kpi
    if name not in _TASK | measured.kpis:
        known = ", ".join([TASK_METRIC, *(each for each in KINDS if each in measured.kpis)])
        yield f"the {stage} stage never measures {name}; it measures {known}"
    elif threshold.versus is not None and name not in _TASK | _BETWEEN_GROUPS:
        yield f"{name} is not compared with {threshold.versus}: give it a bound"
    elif threshold.versus is not None and threshold.versus not in measured.references:
        known = " or ".join(measured.references)
        yield f"the {stage} stage compares with {known}, never with {threshold.versus}"
    elif name in _BETWEEN_GROUPS and not threshold.slice:
        yield f"{name} is measured by a slice column: add slice: worst:* or worst:COLUMN"
    elif threshold.slice and not _has_groups(name, threshold.slice.removeprefix(WORST)):
        yield f"{name} is not measured by {threshold.slice.removeprefix(WORST)}: leave slice out"


def _has_groups(name: str, column: str) -> bool:
    return column == _BY_STEP if name in _CANARY else name in _BY_GROUP | _BETWEEN_GROUPS
