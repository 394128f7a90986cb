"""What a policy may demand of a KPI: a bound, or how much worse than a reference it may be."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from validation.errors import unknown_name
from validation.kpis import KINDS, TASK_METRIC, Kpi, KpiKind, Reference
from validation.record import Record

Severity = Literal["required", "warn", "dry_run"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
WORST = "worst:"
ANY_COLUMN = "*"


class Sample(Record):
    """How much has to be measured before it counts."""

    min_windows: int = Field(ge=1)
    min_timings: int = Field(ge=1)
    min_processes: int = Field(ge=1)

    def needed(self, name: str) -> int:
        """How many of what KPI `name` counts have to stand behind it."""
        counts = {"windows": self.min_windows, "timings": self.min_timings, "processes": self.min_processes}
        return counts.get(KINDS[name].counted, 1)


class Demand(Record):
    """A bound (`at_least`, `at_most`), or how much worse than `versus` a KPI may be.

    `margin` is in the KPI's unit, `relative_margin` a share of the reference's value.
    """

    kpi: str
    at_least: Finite | None = None
    at_most: Finite | None = None
    margin: Annotated[Finite, Field(ge=0)] | None = None
    relative_margin: Annotated[Finite, Field(ge=0, lt=1)] | None = None
    versus: Reference | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Demand":
        for problem in _contradictions(self):
            raise ValueError(problem)
        return self

    def name_in(self, task_metric: str) -> str:
        """The KPI that is asked for in a job whose main metric is `task_metric`."""
        return task_metric if self.kpi == TASK_METRIC else self.kpi


class Threshold(Demand):
    """One demand of a gate.

    `slice` "worst:origin" asks it of every group of that column with at least `min_group` windows that inform
    the metric (statistics.num_telling_windows); "worst:*" of every slice column that the dataset declares.
    `warn` and `dry_run` are reported and never decide.
    """

    slice: Annotated[str, StringConstraints(pattern=r"^(worst:.+)?$")] = ""
    min_group: int = Field(default=1, ge=1)
    severity: Severity = "required"


class Rollback(Demand):
    """One demand on what is live: broken in `windows` observations, and kept in none since, it rolls back."""

    windows: int = Field(ge=1)

    @model_validator(mode="after")
    def _can_be_watched(self) -> "Rollback":
        if self.kpi != TASK_METRIC and not KINDS[self.kpi].is_live:
            live = [TASK_METRIC, *(name for name, kind in KINDS.items() if kind.is_live)]
            raise ValueError(f"{self.kpi} does not change while a model is live; watch {', '.join(live)}")
        if self.versus == "champion":
            raise ValueError("what is live is the champion: roll back against dense or baseline")
        return self


def bound_of(kpi: Kpi, demand: Demand) -> float:
    """The worst value that is still allowed, in the KPI's (or the difference's) unit."""
    if demand.at_least is not None:
        return demand.at_least
    if demand.at_most is not None:
        return demand.at_most
    loss = demand.margin if demand.margin is not None else 0.0
    if demand.relative_margin is not None and kpi.reference_value is not None:
        loss = demand.relative_margin * abs(kpi.reference_value)
    return -loss if KINDS[kpi.name].higher_is_better else loss


def _contradictions(demand: Demand) -> Iterable[str]:
    if demand.kpi != TASK_METRIC and demand.kpi not in KINDS:
        yield unknown_name("KPI", demand.kpi, [TASK_METRIC, *KINDS])
        return
    forms = [demand.at_least, demand.at_most, demand.margin, demand.relative_margin]
    if sum(form is not None for form in forms) != 1:
        yield "give exactly one of at_least, at_most, margin, relative_margin"
    is_margin = demand.margin is not None or demand.relative_margin is not None
    if is_margin != (demand.versus is not None):
        yield "margin and relative_margin go together with versus: dense, baseline or champion"
    if demand.kpi == TASK_METRIC:
        if not is_margin:
            yield "task_metric means another metric in each job: give it a relative_margin, not a bound"
        return
    yield from _impossible_bound(demand, KINDS[demand.kpi])


def _impossible_bound(demand: Demand, kind: KpiKind) -> Iterable[str]:
    if demand.at_least is not None and not kind.higher_is_better:
        yield f"{kind.name} is better when lower, so at_least contradicts it: use at_most"
    if demand.at_most is not None and kind.higher_is_better:
        yield f"{kind.name} is better when higher, so at_most contradicts it: use at_least"
    bound = demand.at_least if demand.at_least is not None else demand.at_most
    if bound is not None and not kind.lowest <= bound <= kind.highest:
        yield f"{kind.name} lies in [{kind.lowest:g}, {kind.highest:g}]: a bound of {bound:g} decides nothing"
