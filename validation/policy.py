"""The rollout policy (infra/rollout.yaml): what each stage asks, who approves, what takes a model back."""

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from validation.canary import CanaryPolicy
from validation.drift import DriftPolicy
from validation.gates import Stage, StagePolicy
from validation.kpis import PAYBACK
from validation.measured import never_measured
from validation.record import Record
from validation.rollback import RollbackPolicy
from validation.strict_yaml import Place, load_record
from validation.thresholds import Finite, Rollback, Threshold

STAGES: tuple[Stage, ...] = get_args(Stage)  # in the order in which a rollout climbs them

Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[Finite, Field(ge=0)]
Hours = Annotated[Finite, Field(gt=0)]
Thresholds = Annotated[tuple[Threshold, ...], Field(min_length=1)]


class DataPolicy(Record):
    """How much bad data a job may leave out and still be judged."""

    max_quarantined_share: Share


class RetrainingPolicy(Record):
    """How a challenger is trained, on what, and how often.

    `data_days` is how far back training looks (None: to the beginning); `judged_windows`, the newest, are
    held back for the meeting with the champion. An automatic retraining waits `cooldown_hours` after the
    last; all together may take `monthly_hours` of training in a calendar month.
    """

    start: Literal["warm", "scratch"]
    selector_first: bool
    data_days: Annotated[Finite, Field(gt=0)] | None = None
    judged_windows: Annotated[int, Field(ge=1)]
    cooldown_hours: Amount
    monthly_hours: Amount


class CostPolicy(Record):
    """Prices, in one currency, that turn measured seconds and bytes into days until a change has paid.

    While they `are_examples` payback is shown and decides nothing, whatever severity a gate gives it.
    A CPU hour is one core's. A device answers one request at a time and holds `device_memory_bytes`; a model
    that needs more takes several.
    """

    are_examples: bool = False
    currency: str
    price_per_gpu_hour: Amount
    price_per_cpu_hour: Amount
    price_per_device: Amount
    device_memory_bytes: Annotated[Finite, Field(gt=0)]
    requests_per_day: Amount
    engineering_cost: Amount


class RingPolicy(Record):
    """How a bundle goes to a fleet of devices (pipelines.edge.rings).

    `shares` of the devices make the rings, one device at least each. Of a ring's devices `max_silent`,
    rounded down, may say nothing, or nothing that can be believed. Each of the others has to have answered
    `min_windows`, and more where the ring is small: together they give the gate what it needs. A ring waits
    for that as long as it comes in: at most `quiet_minutes` without any of it, and `most_hours` in all.
    """

    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 0.1, 1.0)
    max_silent: Share = 0.1
    min_windows: Annotated[int, Field(ge=1)] = 20
    quiet_minutes: Annotated[Finite, Field(gt=0)] = 120.0
    most_hours: Hours = 72.0

    @field_validator("shares")
    @classmethod
    def _end_with_all(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if shares[-1] != 1.0 or any(more <= less for less, more in pairwise(shares)):
            raise ValueError("the shares have to rise, and to end with 1: every device")
        return shares


class Approval(Record):
    """Who has to agree before a model enters a stage.

    `approvers` different people, each within `expires_hours` of the request; the account that trained the
    model only where `trainer_may_approve`.
    """

    approvers: Literal[1, 2]
    trainer_may_approve: bool
    expires_hours: Hours


class StageRules(Record):
    """One stage of the file.

    `quality` and `serving` are the two blessings that its gate gives together. `rollback` watches what is
    live while the rollout is at this stage. `approval: required` makes every promotion *to* this stage wait
    for people; the three settings below it say which, and mean nothing without it.
    """

    quality: Thresholds
    serving: Thresholds
    rollback: Annotated[tuple[Rollback, ...], Field(min_length=1)]
    approval: Literal["automatic", "required"] = "automatic"
    approvers: Literal[1, 2] | None = None
    trainer_may_approve: bool | None = None
    expires_hours: Hours | None = None

    @field_validator("quality", "serving")
    @classmethod
    def _can_decide(cls, thresholds: tuple[Threshold, ...]) -> tuple[Threshold, ...]:
        if all(threshold.severity != "required" for threshold in thresholds):
            raise ValueError("no threshold of severity required, so it could never pass: add one")
        _refuse_repeated((threshold.kpi, threshold.versus, threshold.slice) for threshold in thresholds)
        return thresholds

    @field_validator("rollback")
    @classmethod
    def _watches_once(cls, rules: tuple[Rollback, ...]) -> tuple[Rollback, ...]:
        _refuse_repeated((rule.kpi, rule.versus) for rule in rules)
        return rules

    @model_validator(mode="after")
    def _knows_who_approves(self) -> "StageRules":
        for problem in _unapprovable(self):
            raise ValueError(problem)
        return self


def _refuse_repeated(subjects: Iterable[tuple[str | None, ...]]) -> None:
    seen: set[tuple[str | None, ...]] = set()
    for subject in subjects:
        if subject in seen:
            raise ValueError(f"asks {subject[0]} twice of the same thing: keep one")
        seen.add(subject)


def _unapprovable(rules: StageRules) -> Iterable[str]:
    settings = (rules.approvers, rules.trainer_may_approve, rules.expires_hours)
    if rules.approval == "automatic" and any(setting is not None for setting in settings):
        yield "approvers, trainer_may_approve and expires_hours say who approves: add approval: required"


class StageSections(Record):
    """The stages of a rollout, every one of them."""

    pilot: StageRules
    training: StageRules
    edge: StageRules
    steady: StageRules


class Policy(Record):
    """The whole of infra/rollout.yaml.

    `confidence` is that of every two-sided interval a gate looks at: a check passes, or fails, by chance with
    probability (1 - confidence) / 2 at most. `looks` are the shares of that probability that the first,
    second ... time of asking may use. `max_age_hours`: an older evaluation proves nothing.
    """

    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    looks: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    num_resamples: Annotated[int, Field(ge=100)]
    min_windows: Annotated[int, Field(ge=1)]
    min_timings: Annotated[int, Field(ge=1)]
    min_processes: Annotated[int, Field(ge=1)]
    max_age_hours: Hours
    stages: StageSections
    drift: DriftPolicy
    retraining: RetrainingPolicy
    data: DataPolicy
    cost: CostPolicy
    canary: CanaryPolicy = CanaryPolicy()
    rings: RingPolicy = RingPolicy()

    @field_validator("looks")
    @classmethod
    def _add_up(cls, looks: tuple[float, ...]) -> tuple[float, ...]:
        if not math.isclose(sum(looks), 1.0, abs_tol=1e-9):
            raise ValueError(f"the shares of the looks add up to {sum(looks):g}, they have to make 1")
        return looks

    def stage(self, stage: Stage) -> StagePolicy:
        """What the gate of one stage needs to know."""
        rules: StageRules = getattr(self.stages, stage)
        return StagePolicy(
            stage=stage,
            thresholds=_as_priced(rules.quality, self.cost),
            serving=rules.serving,
            confidence=self.confidence,
            looks=self.looks,
            min_windows=self.min_windows,
            min_timings=self.min_timings,
            min_processes=self.min_processes,
            max_age_hours=self.max_age_hours,
            policy=self.digest(),
        )

    def approval(self, stage: Stage) -> Approval | None:
        """Who has to agree before a model enters `stage`; None where it enters by its verdict alone."""
        rules: StageRules = getattr(self.stages, stage)
        if rules.approval == "automatic":
            return None
        return Approval(
            approvers=rules.approvers or 1,
            trainer_may_approve=rules.trainer_may_approve or False,
            expires_hours=rules.expires_hours or 72.0,
        )

    def rollback(self, stage: Stage) -> RollbackPolicy:
        """What takes the live model back while the rollout is at `stage`."""
        rules: StageRules = getattr(self.stages, stage)
        return RollbackPolicy(
            stage=stage,
            rules=rules.rollback,
            min_windows=self.min_windows,
            min_timings=self.min_timings,
            min_processes=self.min_processes,
        )


def _as_priced(thresholds: Iterable[Threshold], prices: CostPolicy) -> tuple[Threshold, ...]:
    """What is only as true as the prices does not decide while those are examples."""
    watched = {"severity": "dry_run"}
    return tuple(
        each.model_copy(update=watched) if prices.are_examples and each.kpi == PAYBACK else each
        for each in thresholds
    )


def load_policy(path: Path) -> Policy:
    """The policy in a YAML file. Raises InputError with file, line and fix for what it cannot accept."""
    return load_record(path, Policy, _never_judged)


def _never_judged(policy: Policy) -> Iterable[tuple[Place, str]]:
    """Thresholds that no candidate could ever pass, because their stage does not measure what they ask."""
    for stage in STAGES:
        rules: StageRules = getattr(policy.stages, stage)
        for section, thresholds in (("quality", rules.quality), ("serving", rules.serving)):
            for index, threshold in enumerate(thresholds):
                for problem in never_measured(stage, threshold):
                    yield ("stages", stage, section, index), problem
