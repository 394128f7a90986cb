"""How good each subject is by itself, in its own units, beside the differences that gates look at."""

from pipelines.data.spec import DatasetSpec
from pipelines.evaluation import TASK_METRICS, resampling
from pipelines.scoring import Scores, load_scored
from validation.policy import Policy
from validation.record import Record
from validation.statistics import METRICS, Interval, interval


class Values(Record):
    """A subject's task metrics themselves, each with its interval, over the windows of one part."""

    role: str
    """candidate, dense or baseline."""
    subject: str
    part: str
    num_windows: int
    metrics: dict[str, Interval]


def task_values(role: str, scores: Scores, spec: DatasetSpec, policy: Policy) -> Values:
    """One subject alone, resampled as the gates do it, at the policy's confidence."""
    scored, how = load_scored(scores), resampling(policy, spec, scores.num_windows)
    metrics = {name: interval(METRICS[name], scored, **how) for name in TASK_METRICS[spec.task]}
    about = {"subject": scores.subject, "part": scores.part, "num_windows": scores.num_windows}
    return Values(role=role, metrics=metrics, **about)
