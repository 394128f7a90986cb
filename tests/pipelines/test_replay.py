"""A month of operation: what its data have to be before anybody is judged on it."""

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from pipelines import replay
from pipelines.baselines import score_baseline
from pipelines.checkpoint import Checkpoint
from pipelines.data.spec import load_spec
from pipelines.job import Job, Prepared
from pipelines.judging import score
from pipelines.monitoring import observations
from pipelines.preparation import prepare, snapshot_data, validate_snapshot
from pipelines.release_log import ReleaseLog
from pipelines.replay import Month, replay_month
from pipelines.settings import load_settings
from tests.tiny_rollout import pump_table, train_tiny, write_dataset, write_policy
from validation.gates import Outcome
from validation.policy import load_policy

Replay = Callable[[str, Checkpoint | None], tuple[Month, Checkpoint, Checkpoint | None]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The pump, whose sensor said nonsense on twenty hours of June: too many for June, not for the table."""
    folder = tmp_path_factory.mktemp("replay")
    june = pl.col("at").is_between(pl.datetime(2024, 6, 10), pl.datetime(2024, 6, 10, 19))
    table = pump_table().with_columns(load=pl.when(june).then(1e6).otherwise("load"))
    spec = load_spec(write_dataset(folder, table=table))
    settings = load_settings({"DANKAI_HOME": str(folder / "home")})
    tracker: Any = None  # nothing here may need it
    policy = load_policy(write_policy(folder))
    return Job(settings, spec, policy, tracker, ReleaseLog.open(settings), lambda *_: None)


@pytest.fixture(scope="module")
def prepared(job: Job) -> Prepared:
    snapshot = snapshot_data(job)
    return prepare(job, snapshot, validate_snapshot(job, snapshot))


@pytest.fixture(scope="module")
def champion(job: Job, prepared: Prepared) -> Checkpoint:
    trained, _ = train_tiny(job.windows(prepared), "sparse", job.folder / "champion")
    return trained


@pytest.fixture(scope="module")
def challenger(champion: Checkpoint) -> Checkpoint:
    return champion.model_copy(update={"sha256": "c" * 64})


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, challenger: Checkpoint) -> list[str]:
    """Who was judged or trained, in order. What the steps themselves do is tested where they live."""
    called: list[str] = []

    def noted(name: str, result: Any) -> Callable[..., Any]:
        return lambda *_: called.append(name) or result

    monkeypatch.setattr(replay, "meet", noted("meet", (None, True)))
    monkeypatch.setattr(replay, "_watch", noted("watch", None))
    monkeypatch.setattr(replay, "_retrain", noted("retrain", challenger))
    monkeypatch.setattr(replay, "track_month", lambda *_: None)
    return called


@pytest.fixture
def run(job: Job, prepared: Prepared, champion: Checkpoint) -> Replay:
    windows = job.windows(prepared)
    released = score(job, prepared, champion, "test", 0.25, "sparse-seed0")

    def one(month: str, challenger: Checkpoint | None) -> tuple[Month, Checkpoint, Checkpoint | None]:
        [baseline] = score_baseline(windows, [month], job.folder / "scores", job.report)
        return replay_month(
            job, prepared, month, champion, challenger, released, baseline, champion, has_next=True
        )

    return one


def test_a_month_of_sound_data_judges_and_trains(
    run: Replay, judged: list[str], challenger: Checkpoint
) -> None:
    month, live, following = run("2024-05", challenger)
    assert judged == ["meet", "watch", "retrain"]
    assert month.data.outcome is Outcome.PASS
    assert (month.not_judged, month.waiting, month.retrained) == (None, None, challenger.sha256)
    assert (live, following) == (challenger, challenger)


def test_on_a_month_whose_data_fail_nobody_is_judged_and_the_challenger_waits(
    run: Replay, judged: list[str], job: Job, champion: Checkpoint, challenger: Checkpoint
) -> None:
    month, live, following = run("2024-06", challenger)
    assert judged == []
    assert month.data.outcome is Outcome.FAIL
    assert month.drift.decision == "retrain"  # and still nothing is trained on such data
    assert month.not_judged == f"data FAIL: {month.data.reason}"
    assert (month.waiting, month.retrained, month.evaluation) == (challenger.sha256, None, None)
    assert (live, following) == (champion, challenger)
    assert observations(job.settings, job.spec.name) == []
    assert job.log.entries() == []
