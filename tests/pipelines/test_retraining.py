"""A retraining: what it is trained and judged on, what it costs, and how it may end."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from pipelines import retraining
from pipelines.actors import automatic
from pipelines.candidates import train_candidate
from pipelines.checkpoint import Checkpoint
from pipelines.data.spec import load_spec
from pipelines.job import Job
from pipelines.monitor import monitor_batch
from pipelines.preparation import source_data
from pipelines.registry import Tracker
from pipelines.release import live_checkpoint, start_pilot
from pipelines.release_log import Action, ReleaseLog
from pipelines.report.leaving import leave_retraining
from pipelines.report.story import read_story
from pipelines.retraining import RetrainingReport, retrain, retrainings
from pipelines.rollout import current_state
from pipelines.settings import Settings
from tests.tiny_rollout import TURNS, pump_table, write_dataset, write_policy
from validation.errors import InputError
from validation.gates import Outcome
from validation.policy import load_policy

NAME = "retrained"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, store: Settings, tracker: Tracker) -> Job:
    """The pump up to the day from which on trips follow the load; a sparse model of it is live."""
    folder = tmp_path_factory.mktemp(NAME)
    dates = {"validation": "2024-04-05", "test": "2024-04-15"}
    table = pump_table().filter(pl.col("at") < TURNS)
    spec = load_spec(write_dataset(folder, NAME, table=table, split=dates))
    policy = load_policy(write_policy(folder))
    rules = policy.retraining.model_copy(update={"judged_windows": 40, "selector_first": True})
    policy = policy.model_copy(update={"retraining": rules})
    job = Job(store, spec, policy, tracker, ReleaseLog.open(store), lambda *_: None)
    start_pilot(job, train_candidate(job, source_data(job), "sparse"), "in use")
    return job


@pytest.fixture(scope="module")
def report(job: Job, tmp_path_factory: pytest.TempPathFactory) -> RetrainingReport:
    """The retraining after two months in which the world had changed."""
    path = tmp_path_factory.mktemp("batch") / "since.csv"
    pump_table().filter(pl.col("at") >= TURNS).write_csv(path)
    seen = monitor_batch(job, path)
    assert seen.decision == "retrain"
    assert "worse for certain" in seen.reasons[0]
    return retrain(job, "trips follow the load now", seen.batch)


def test_the_two_meet_on_windows_that_neither_has_seen(job: Job, report: RetrainingReport) -> None:
    assert report.evaluation is not None
    assert report.evaluation.stage == "steady"
    assert report.evaluation.candidate is not None
    assert report.evaluation.candidate.num_windows == job.policy.retraining.judged_windows
    assert report.split is not None
    assert isinstance(report.split.test, datetime)
    assert report.split.test > TURNS
    assert report.evaluation.verdict.evidence.references["champion"] == report.champion
    assert {*report.evaluation.references} == {"champion", "baseline"}


def test_where_the_world_changed_the_selector_is_not_enough(report: RetrainingReport) -> None:
    assert report.trained == "sparse"
    assert report.outcome in ("promoted", "held", "dropped")
    assert report.train_seconds > 0


def test_the_release_log_and_mlflow_have_it_as_parent_and_children(
    job: Job, report: RetrainingReport
) -> None:
    moves = [entry.decision for entry in job.log.entries() if entry.decision.dataset == NAME]
    assert [move.action for move in moves][:2] == [Action.BOOTSTRAP, Action.RETRAIN]
    assert moves[1].reason == "trips follow the load now"
    assert len(moves) == 3
    parent = job.tracker.get_run(report.run_id)
    assert parent.data.tags["outcome"] == report.outcome
    children = job.tracker.find_runs({"mlflow.parentRunId": report.run_id})
    assert {run.data.tags["kind"] for run in children} >= {"training", "baseline", "evaluation"}


def test_what_is_live_afterwards_is_what_the_report_says(job: Job, report: RetrainingReport) -> None:
    live = live_checkpoint(job.settings, NAME).sha256
    assert live == (report.challenger if report.outcome == "promoted" else report.champion)
    assert retrainings(job.settings, NAME)[-1].model_dump_json() == report.model_dump_json()


def test_a_person_may_train_again_at_once_and_an_event_may_not(job: Job, report: RetrainingReport) -> None:
    by_itself = replace(job, actor=automatic("deployment retraining"))
    refused = retrain(by_itself, "drift again")
    assert refused.outcome == "refused"
    assert "the next may start at" in refused.why
    assert retraining.refusal(job, [report]) == ""


def test_the_months_hours_hold_for_everybody(job: Job, report: RetrainingReport) -> None:
    rules = job.policy.retraining.model_copy(update={"monthly_hours": 0.0})
    poor = replace(job, policy=job.policy.model_copy(update={"retraining": rules}))
    assert "of 0 hours of training are spent" in retraining.refusal(poor, [report])


def test_without_windows_that_the_champion_has_not_seen_nothing_is_trained(job: Job) -> None:
    rules = job.policy.retraining.model_copy(update={"judged_windows": 120})
    hungry = replace(job, policy=job.policy.model_copy(update={"retraining": rules}))
    with pytest.raises(InputError, match=r"retraining\.judged_windows: the newest 120 windows begin at"):
        retrain(hungry, "too early")


def test_one_that_was_cut_off_goes_on_against_the_champion_of_its_time(
    job: Job, report: RetrainingReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job.settings.home / "datasets" / NAME / "retrainings"
    cut_off = report.model_copy(update={"outcome": "unfinished", "started_at": "2020-01-01T00:00:00+00:00"})
    (folder / "2020-01-01T000000+0000.json").write_text(cut_off.model_dump_json())
    monkeypatch.setattr(
        retraining, "_retrained", lambda _, begun, __: begun.model_copy(update={"outcome": "held"})
    )
    ended = retrain(job, "another reason")
    assert (ended.reason, ended.champion, ended.outcome) == (report.reason, report.champion, "held")
    assert "unfinished" not in {each.outcome for each in retrainings(job.settings, NAME)}


def test_a_reason_is_needed(job: Job) -> None:
    with pytest.raises(InputError, match="say in one line why"):
        retrain(job, " ")


def test_where_the_selector_alone_brings_the_metric_back_nothing_else_is_trained(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = live_checkpoint(job.settings, NAME)
    asked: list[str] = []

    def trained(_job: Job, _prepared: object, mode: str, **_: object) -> Checkpoint:
        asked.append(mode)
        return champion

    prepared = source_data(job)
    released = retraining.score(job, prepared, champion, "test", 0.25, "champion")
    monkeypatch.setattr(retraining, "train_candidate", trained)
    monkeypatch.setattr(retraining, "score", lambda *_: released)
    assert retraining.train_challenger(job, prepared, champion, released)[:2] == (champion, "selector")
    assert asked == ["selector"]


@pytest.mark.parametrize(
    ("outcome", "is_live", "ended"),
    [
        (Outcome.PASS, True, "promoted"),
        (Outcome.PASS, False, "held"),
        (Outcome.HOLD, False, "held"),
        (Outcome.FAIL, False, "dropped"),
    ],
)
def test_how_it_ends(outcome: Outcome, is_live: bool, ended: str, report: RetrainingReport) -> None:
    assert report.evaluation is not None
    verdict = report.evaluation.verdict.model_copy(update={"outcome": outcome})
    evaluation = report.evaluation.model_copy(update={"verdict": verdict})
    assert retraining.ending(evaluation, is_live)[0] == ended


def test_a_damaged_report_is_named(store: Settings, tmp_path: Path) -> None:
    folder = store.home / "datasets" / "damaged" / "retrainings"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x\.json: not a whole report of a retraining"):
        retrainings(store, "damaged")


def test_the_rollout_still_knows_where_it_stands(job: Job, report: RetrainingReport) -> None:
    state = current_state(job.log, NAME)
    assert state.live is not None
    assert (state.challenger is None) is (report.outcome != "held")


def test_it_leaves_a_page_that_tells_it_beside_the_batch_that_asked(
    job: Job, report: RetrainingReport
) -> None:
    left = leave_retraining(job, report)
    story = left.story
    assert (story.kind, story.outcome, story.reason) == ("retraining", report.outcome, report.reason)
    assert [each.which for each in story.windows] == ["best", "typical", "worst"]
    assert [each.stage for each in story.evaluations] == ["steady"]
    assert [each.decision for each in story.periods if each.drift][:1] == ["retrain"]
    assert [each.event for each in story.periods if each.is_this] == [report.outcome]
    assert read_story(left.page.parent).model_dump_json() == story.model_dump_json()
    assert report.outcome.upper() in left.page.read_text(encoding="utf-8")
    run = job.tracker.get_run(report.run_id)
    kept = Path(str(run.info.artifact_uri).removeprefix("file://")) / "report.html"
    assert kept.read_bytes() == left.page.read_bytes()
