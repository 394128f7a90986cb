"""Months replayed under three strategies: the same windows, different models."""

import pytest

from pipelines import strategies
from pipelines.data.spec import load_spec
from pipelines.job import Job
from pipelines.registry import Tracker
from pipelines.release_log import ReleaseLog
from pipelines.settings import Settings
from pipelines.strategies import Comparison, Course, compare, months_from
from tests.tiny_rollout import TURNS, write_dataset, write_policy
from validation.errors import InputError
from validation.policy import load_policy
from validation.statistics import Interval


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, store: Settings, tracker: Tracker) -> Job:
    folder = tmp_path_factory.mktemp("strategies")
    spec = load_spec(write_dataset(folder, "strategies"))
    return Job(
        store, spec, load_policy(write_policy(folder)), tracker, ReleaseLog.open(store), lambda *_: None
    )


@pytest.fixture(scope="module")
def compared(job: Job) -> Comparison:
    return compare(job, TURNS)


def test_every_strategy_sees_the_same_months(compared: Comparison) -> None:
    assert [course.strategy for course in compared.courses] == ["never", "monthly", "drift", "growth"]
    for course in compared.courses:
        assert [month.month for month in course.months] == ["2024-05", "2024-06"]
    assert len({course.months[0].value.value for course in compared.courses}) == 1
    assert compared.course("monthly").versus_monthly == Interval(
        value=0, low=0, high=0, n=compared.course("monthly").value.n, confidence=0.95
    )


def test_a_world_that_turned_is_worth_a_training_and_a_last_month_is_not(compared: Comparison) -> None:
    never, monthly, drift, growth = compared.courses
    assert [course.num_trainings for course in compared.courses] == [0, 1, 1, 1]
    assert drift.months[0].drift == "retrain"
    assert drift.months[1].champion == monthly.months[1].champion != never.months[1].champion
    assert drift.months[1].value.value > never.months[1].value.value + 0.1
    assert drift.months[1].gate is not None
    assert drift.train_seconds == monthly.train_seconds > 0
    assert growth.months[1].champion == monthly.months[1].champion  # two months more than ten days


def test_data_that_have_hardly_grown_are_no_reason(
    job: Job, compared: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies, "GROWTH", 10.0)
    assert compare(job, TURNS).course("growth").num_trainings == 0


def test_nothing_that_is_live_is_touched(job: Job, compared: Comparison) -> None:
    assert [entry for entry in job.log.entries() if entry.decision.dataset == compared.dataset] == []


def test_months_need_dates(job: Job) -> None:
    split = job.spec.split.model_copy(update={"validation": 0.4, "test": 0.5, "replay": None})
    with pytest.raises(InputError, match="a replay by months needs dates"):
        months_from(job.spec.model_copy(update={"split": split}), TURNS)


@pytest.mark.parametrize(
    ("loss", "trainings", "expected"), [(0.007, 1, True), (0.009, 1, False), (0.0, 2, False), (-0.1, 1, True)]
)
def test_close_enough_is_one_percent_with_half_the_trainings(
    loss: float, trainings: int, expected: bool, compared: Comparison
) -> None:
    month = compared.course("monthly").months[0]

    def course(strategy: str, value: float, num: int) -> Course:
        months = [month.model_copy(update={"trained": "sparse"})] * num
        at = Interval(value=value, low=value, high=value, n=9)
        return Course.model_validate({"strategy": strategy, "months": months, "value": at})

    courses = (course("monthly", 0.8, 3), course("drift", 0.8 - loss, trainings))
    assert compared.model_copy(update={"courses": courses}).is_within(0.01) is expected
