"""What each budget of one model costs and is worth, and which one keeps a promise.

No heavy imports: serving, devices' manifests and the command line read these records.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from sparse_model.config import Budget
from validation.errors import InputError
from validation.record import Record
from validation.statistics import Interval

FILE = "calibration.json"


class Cost(Record):
    """What one inference takes, batch size 1."""

    latency_p50_ms: Interval
    latency_p90_ms: Interval
    peak_memory_bytes: Interval
    """Of a whole fresh process that holds the model and nothing else; n counts processes."""


class BudgetPoint(Record):
    """What may be expected of one budget, under the conditions of its calibration."""

    density: float
    num_selected: int
    """Blocks read by each query block."""
    metric: str
    task_metric: float
    loss: Interval
    """How much worse than dense, as a share of dense's metric; below 0 is better."""
    cost: Cost


class Conditions(Record):
    """Where and how a calibration was measured: its figures hold there."""

    machine: str
    device: str
    threads: int
    num_steps: int
    """Length of the sequence, batch size 1."""
    num_timings: int
    """Inferences behind each latency."""
    confidence: float

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        where = self.machine if self.device == "cuda" else f"{threads} of {self.machine}"
        return f"{self.num_steps:,} steps on {where}"


class Calibration(Record):
    """The sensitivity table of one checkpoint: density against metric, latency and memory."""

    checkpoint: str
    """SHA-256 of the weights."""
    dense: str
    """SHA-256 of the dense model that `loss` compares with."""
    snapshot: str
    num_windows: int
    """Validation windows behind each metric."""
    dense_metric: float
    dense_cost: Cost
    points: tuple[BudgetPoint, ...]
    """In ascending order of density."""
    conditions: Conditions

    def budget_for(
        self,
        *,
        latency_ms: float | None = None,
        memory_bytes: float | None = None,
        max_loss: float | None = None,
    ) -> Budget:
        """The budget that keeps every target given, by the pessimistic end of what was measured.

        `latency_ms` bounds the 90th percentile of one inference, `memory_bytes` the peak of its process,
        `max_loss` the loss against dense as a share of dense's metric. With `max_loss` it is the smallest
        budget that loses no more; without, the largest that time and memory allow. Raises InputError that
        says what is possible where no measured budget keeps them all.
        """
        targets = _targets(latency_ms, memory_bytes, max_loss)
        fitting = [point for point in self.points if all(target.is_kept(point) for target in targets)]
        if not fitting:
            raise InputError(f"budget: {self._impossible(targets)} (measured: {self.conditions})")
        return Budget((fitting[0] if max_loss is not None else fitting[-1]).density)

    def point(self, budget: Budget) -> BudgetPoint | None:
        """What was measured of a budget."""
        return next((point for point in self.points if point.density == budget.density), None)

    def _impossible(self, targets: "list[_Target]") -> str:
        for target in targets:
            if not any(map(target.is_kept, self.points)):
                return f"{target} cannot be kept: {_nearest(self.points, target)}"
        kept = "; ".join(f"{target} allows densities {_listed(self.points, target)}" for target in targets)
        return f"no measured one keeps every target: {kept}"


@dataclass(frozen=True)
class _Target:
    """One promise: the name of its option, its bound, and the measured figure that has to stay within."""

    name: str
    bound: float
    worst: Callable[[BudgetPoint], float]
    """The pessimistic end of the figure; NaN where there was too little to measure, which keeps nothing."""
    unit: str

    def is_kept(self, point: BudgetPoint) -> bool:
        return self.worst(point) <= self.bound

    def __str__(self) -> str:
        return f"{self.name} {self.bound:,.4g}{self.unit}"


def _targets(latency_ms: float | None, memory_bytes: float | None, max_loss: float | None) -> list[_Target]:
    given = [
        _Target("latency", latency_ms, lambda point: point.cost.latency_p90_ms.high, " ms")
        if latency_ms is not None
        else None,
        _Target(
            "memory", memory_bytes / 2**20, lambda point: point.cost.peak_memory_bytes.high / 2**20, " MiB"
        )
        if memory_bytes is not None
        else None,
        _Target("loss", max_loss, lambda point: point.loss.high, " of dense's metric")
        if max_loss is not None
        else None,
    ]
    targets = [target for target in given if target is not None]
    if not targets:
        raise InputError("budget: name a target: latency_ms, memory_bytes or max_loss")
    for target in targets:
        if not target.bound >= 0:
            raise InputError(f"budget: {target.name} must be a number of at least 0, got {target.bound}")
    return targets


def _nearest(points: tuple[BudgetPoint, ...], target: _Target) -> str:
    known = [point for point in points if isfinite(target.worst(point))]
    if not known:
        return "there were too few windows to tell"
    best = min(known, key=target.worst)
    return f"density {best.density:g} comes nearest with up to {target.worst(best):,.4g}{target.unit}"


def _listed(points: tuple[BudgetPoint, ...], target: _Target) -> str:
    return ", ".join(f"{point.density:g}" for point in points if target.is_kept(point))


def load_calibration(folder: Path) -> Calibration:
    """The table that lies beside a checkpoint. Raises InputError where there is none that can be read."""
    path = folder / FILE
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: this checkpoint was not calibrated; run its rollout again") from None
    except ValueError as error:
        raise InputError(
            f"{path}: not a calibration ({type(error).__name__}); run its rollout again"
        ) from None
