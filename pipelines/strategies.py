"""What would have happened: the same months with a model that is trained again never, monthly, upon drift, or
whenever the data have grown.

The first model is trained on everything up to a month before the replay begins; that month lets it in. A
retraining at a month's end goes on from the model of the time and is live in the next month at once: how good
a strategy is must not hang on whether a gate can decide with one month's windows. What the gate's quality
checks would have said is noted beside it. Growth stands beside drift because a model of few months gains by
every further one, however alike: what monthly training wins is not all an answer to drift.
"""

import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal

import numpy as np

from pipelines.candidates import train_candidate
from pipelines.checkpoint import Checkpoint
from pipelines.clock import now
from pipelines.data.spec import DatasetSpec, Split
from pipelines.evaluation import TASK_METRICS, evaluate, groups_of, resampling, task_value
from pipelines.fingerprint import Environment, environment
from pipelines.inspection import Released, Seen, inspect, released_profile
from pipelines.job import Job, Prepared
from pipelines.judging import score, score_baselines
from pipelines.preparation import source_data
from pipelines.replay import VALIDATION_DAYS, replay_parts, until_end_of
from pipelines.retraining import reading_as, train_challenger
from pipelines.scoring import Scores, load_scored
from validation.drift import Decision, DriftReport
from validation.gates import Outcome
from validation.kpis import Kpi, Reference
from validation.record import Record
from validation.statistics import METRICS, Interval, Scored, paired_interval

Strategy = Literal["never", "monthly", "drift", "growth"]
STRATEGIES: tuple[Strategy, ...] = ("never", "monthly", "drift", "growth")
GROWTH = 0.5  # half as many rows again: learning curves are straight in the logarithm of their number


class MonthOf(Record):
    """One month under one strategy."""

    month: str
    champion: str
    value: Interval
    drift: Decision
    reasons: tuple[str, ...]
    trained: str | None = None
    """What was trained at its end: selector, or the whole model."""
    train_seconds: float = 0.0
    groups: tuple[Kpi, ...] = ()
    """The metric of every group, and the largest gap of each slice column."""
    gate: Outcome | None = None
    """What the steady gate's quality checks say of this month's model beside the one before it."""


class Course(Record):
    """All months under one strategy, and the metric over all of them together.

    A ranking over all months together also compares scores of different models, which no month's own does:
    `mean` is of the months, each by itself.
    """

    strategy: Strategy
    months: tuple[MonthOf, ...]
    value: Interval
    versus_monthly: Interval | None = None
    """metric - that of monthly retraining, paired over the same windows."""

    @property
    def mean(self) -> float:
        return sum(month.value.value for month in self.months) / len(self.months)

    @property
    def num_trainings(self) -> int:
        return sum(month.trained is not None for month in self.months)

    @property
    def train_seconds(self) -> float:
        return sum(month.train_seconds for month in self.months)


class Comparison(Record):
    """The courses of all strategies over the same months."""

    dataset: str
    date: str
    environment: Environment
    seconds: float
    metric: str
    first_train_seconds: float
    courses: tuple[Course, ...]

    def course(self, strategy: Strategy) -> Course:
        return next(course for course in self.courses if course.strategy == strategy)

    def is_within(self, share: float, strategy: Strategy = "drift") -> bool:
        """Whether a strategy loses at most `share` of monthly's metric, over all months together and in their
        mean, with half its trainings."""
        monthly, other = self.course("monthly"), self.course(strategy)
        pairs = ((monthly.value.value, other.value.value), (monthly.mean, other.mean))
        better = 1 if METRICS[self.metric].higher_is_better else -1
        is_close = all(better * (theirs - ours) <= share * abs(theirs) for theirs, ours in pairs)
        return is_close and other.num_trainings <= 0.5 * monthly.num_trainings


def compare(job: Job, start: datetime) -> Comparison:
    """Run every strategy over the months from `start` on. Raises InputError where there are none."""
    began = time.monotonic()
    job = replace(job, spec=months_from(job.spec, start))
    prepared = source_data(job)
    first = train_candidate(job, prepared, "sparse")
    baselines = {scores.part: scores for scores in score_baselines(job, prepared)}
    ran: dict[Strategy, tuple[Course, Scored]] = {
        each: _Run(job, prepared, first, baselines, each).course() for each in STRATEGIES
    }
    monthly = ran["monthly"][1]
    courses = tuple(_beside(job, course, scored, monthly) for course, scored in ran.values())
    return Comparison(
        dataset=job.spec.name,
        date=now(),
        environment=environment(),
        seconds=time.monotonic() - began,
        metric=TASK_METRICS[job.spec.task][0],
        first_train_seconds=first.train_seconds,
        courses=courses,
    )


def months_from(spec: DatasetSpec, start: datetime) -> DatasetSpec:
    """The dataset split for a replay: the month before `start` lets the first model in, a week before that
    stops its training early. Raises InputError where the split knows no dates."""
    if not isinstance(spec.split.test, datetime):
        raise spec.refuse("split", "a replay by months needs dates, not shares of rows")
    before = (start - timedelta(days=1)).replace(day=1)
    split = Split(validation=before - timedelta(days=VALIDATION_DAYS), test=before, replay=start)
    return spec.model_copy(update={"split": split})


class _Run:
    """One strategy's way through the months."""

    def __init__(
        self,
        job: Job,
        prepared: Prepared,
        first: Checkpoint,
        baselines: dict[str, Scores],
        strategy: Strategy,
    ) -> None:
        self.job, self.prepared, self.baselines = job, prepared, baselines
        self.strategy: Strategy = strategy
        self.champion, self.predecessor, self.trained_on = first, None, job
        self.released = Released(
            score(job, prepared, first, "test", job.plan.target_density, "champion"),
            released_profile(job, prepared, first),
        )
        self.seen: list[DriftReport] = []

    predecessor: Checkpoint | None

    def course(self) -> tuple[Course, Scored]:
        """The course, and all scores of its months."""
        months = replay_parts(self.job.windows(self.prepared))
        passed, scored = [], []
        for month in months:
            scores = self._scores(self.champion, month)
            scored.append(load_scored(scores))
            passed.append(self._month(month, scores, has_next=month != months[-1]))
        whole = _joined(scored)
        value = self._interval(whole)
        return Course(strategy=self.strategy, months=tuple(passed), value=value), whole

    def _month(self, month: str, scores: Scores, has_next: bool) -> MonthOf:
        windows = self.job.windows(self.prepared)
        reference = self.trained_on.windows(self.prepared)
        report = inspect(
            self.job, reference, windows, month, self.champion, scores, self.released, Seen(self.seen)
        )
        self.seen.append(report)
        seen = MonthOf(
            month=month,
            champion=self.champion.sha256,
            value=self._interval(load_scored(scores)),
            drift=report.decision,
            reasons=report.reasons,
            groups=tuple(groups_of(scores, self.job.spec, self.job.policy, self.job.policy.min_windows)),
            gate=self._gate(month, scores),
        )
        return self._retrained(seen, month) if has_next and self._wants(report, month) else seen

    def _wants(self, report: DriftReport, month: str) -> bool:
        match self.strategy:
            case "never":
                return False
            case "monthly":
                return True
            case "drift":
                return report.decision == "retrain"
            case "growth":
                return self._grown(month) >= GROWTH

    def _grown(self, month: str) -> float:
        """How many rows more are known at the month's end than were trained on, as a share of those."""
        windows = self.trained_on.windows(self.prepared)
        end = until_end_of(month).test
        assert isinstance(end, datetime)  # a month's end is no share of the rows
        known = windows.time_us < np.datetime64(end, "us").astype(np.int64)
        return float(known.sum() / (windows.parts == windows.part_names.index("train")).sum() - 1)

    def _retrained(self, seen: MonthOf, month: str) -> MonthOf:
        inner = reading_as(self.job, self.champion, until_end_of(month))
        trained = train_challenger(inner, self.prepared, self.champion, self.released.scores)
        self.predecessor, self.champion, self.trained_on = self.champion, trained.checkpoint, inner
        self.seen = []  # what had lasted was about other data
        return seen.model_copy(update={"trained": trained.what, "train_seconds": trained.seconds})

    def _gate(self, month: str, scores: Scores) -> Outcome | None:
        """The quality checks alone: nobody is served in a replay."""
        if self.predecessor is None:
            return None
        before, self.predecessor = self._scores(self.predecessor, month), None
        references: dict[Reference, Scores] = {"champion": before, "baseline": self.baselines[month]}
        evaluation = evaluate("steady", self.job.spec, self.job.policy, scores, references)
        return evaluation.verdict.blessing("quality")

    def _scores(self, checkpoint: Checkpoint, month: str) -> Scores:
        return score(self.job, self.prepared, checkpoint, month, self.job.plan.target_density, "live")

    def _interval(self, scored: Scored) -> Interval:
        return task_value(scored, self.job.spec, self.job.policy)


def _joined(parts: list[Scored]) -> Scored:
    return Scored(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.mask for part in parts]),
    )


def _beside(job: Job, course: Course, scored: Scored, monthly: Scored) -> Course:
    metric = METRICS[TASK_METRICS[job.spec.task][0]]
    how = resampling(job.policy, job.spec, scored.num_windows)
    return course.model_copy(update={"versus_monthly": paired_interval(metric, scored, monthly, **how)})
