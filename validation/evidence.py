"""What measured KPIs must be about, when they were measured, and how often a gate was asked about them."""

from datetime import datetime

from pydantic import Field, field_validator

from validation.causes import Gap, gap
from validation.errors import unknown_name
from validation.kpis import TASK_KINDS, Reference
from validation.record import Record


class Look(Record):
    """One time of asking: the digest of what was looked at, and how many windows it held."""

    evidence: str
    num_windows: int


class Evidence(Record):
    """What the KPIs must be about: digests of the candidate, of its data and of every reference that exists.

    `task_metric` is the job's main metric; `slices` are the slice columns that the dataset file declares.
    `not_comparable` says of a reference, in words, why it was not scored on the candidate's windows.
    `looks` are all times this stage was asked about this candidate, the present one last. `measured_at` is
    when the oldest scores were made, `judged_at` when the gate was asked (ISO 8601, UTC).
    """

    checkpoint: str
    snapshot: str
    task_metric: str
    references: dict[Reference, str] = Field(default_factory=dict)
    slices: tuple[str, ...] = ()
    not_comparable: dict[Reference, str] = Field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    measured_at: str | None = None
    judged_at: str | None = None

    @field_validator("task_metric")
    @classmethod
    def _is_a_task_metric(cls, name: str) -> str:
        known = [kind.name for kind in TASK_KINDS]
        if name not in known:
            raise ValueError(unknown_name("task metric", name, known))
        return name

    @property
    def look(self) -> int:
        """Which time of asking this is, from 1."""
        return max(1, len(self.looks))


def staleness(evidence: Evidence, max_age_hours: float | None, now: str | None) -> Gap | None:
    """Why evidence is too old to act on at `now` (ISO 8601), None when it is not; None sets no limit."""
    return too_old(evidence.measured_at, max_age_hours, now)


def too_old(measured_at: str | None, max_age_hours: float | None, now: str | None) -> Gap | None:
    """The same of anything that was measured at one time."""
    if max_age_hours is None:
        return None
    if not measured_at or now is None:
        return gap("undated", "it does not say when it was measured")
    age = age_hours(measured_at, now)
    if age > max_age_hours:
        said = f"it was measured {age:,.0f} hours ago, {max_age_hours:g} are allowed: measure it again"
        return gap("old", said, age, max_age_hours)
    return gap("clock", "it was measured after it was judged: set the clock") if age < -1 else None


def age_hours(then: str, now: str) -> float:
    """Hours from one ISO 8601 time to a later one."""
    return (datetime.fromisoformat(now) - datetime.fromisoformat(then)).total_seconds() / 3600
