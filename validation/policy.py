"""The rollout policy: what each stage asks, how drift is judged and what things cost (infra/rollout.yaml)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, model_validator

from validation.canary import CanaryPolicy
from validation.drift import DriftPolicy
from validation.gates import Finite, Stage, StagePolicy, Threshold
from validation.record import Record
from validation.strict_yaml import load_record

STAGES: tuple[Stage, ...] = get_args(Stage)  # in the order in which a rollout climbs them

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[Finite, Field(ge=0)]
Thresholds = Annotated[tuple[Threshold, ...], Field(min_length=1)]


class DataPolicy(Record):
    """How much bad data a job may leave out and still be judged."""

    max_quarantined_share: Share


class CostPolicy(Record):
    """Prices, in one currency, that turn measured seconds into days until a change has paid for itself."""

    currency: str
    price_per_gpu_hour: Amount
    price_per_cpu_hour: Amount
    requests_per_day: Amount
    engineering_cost: Amount


class StageThresholds(Record):
    """The thresholds of each stage; every stage has to ask for something."""

    pilot: Thresholds
    training: Thresholds
    edge: Thresholds
    steady: Thresholds

    @model_validator(mode="after")
    def _can_decide(self) -> "StageThresholds":
        for stage in STAGES:
            for problem in _undecidable(stage, getattr(self, stage)):
                raise ValueError(problem)
        return self


def _undecidable(stage: Stage, thresholds: tuple[Threshold, ...]) -> Iterable[str]:
    if all(threshold.severity != "required" for threshold in thresholds):
        yield f"stage {stage} has no threshold of severity required, so it could never pass: add one"
    seen: set[tuple[str, str | None, str]] = set()
    for threshold in thresholds:
        subject = (threshold.kpi, threshold.versus, threshold.slice)
        if subject in seen:
            yield f"stage {stage} asks {threshold.kpi} twice of the same thing: keep one"
        seen.add(subject)


class Policy(Record):
    """The whole of infra/rollout.yaml. `confidence` is two-sided, for every interval a gate looks at."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    num_resamples: Annotated[int, Field(ge=100)]
    min_windows: Annotated[int, Field(ge=1)]
    min_timings: Annotated[int, Field(ge=1)]
    min_processes: Annotated[int, Field(ge=1)]
    stages: StageThresholds
    drift: DriftPolicy
    data: DataPolicy
    cost: CostPolicy
    canary: CanaryPolicy = CanaryPolicy()

    def stage(self, stage: Stage) -> StagePolicy:
        """What the gate of one stage needs to know."""
        return StagePolicy(
            stage=stage,
            thresholds=getattr(self.stages, stage),
            min_windows=self.min_windows,
            min_timings=self.min_timings,
            min_processes=self.min_processes,
        )


def load_policy(path: Path) -> Policy:
    """The policy in a YAML file. Raises InputError with file, line and fix for what it cannot accept."""
    return load_record(path, Policy)
