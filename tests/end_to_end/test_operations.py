"""A drifted batch on real servers: event, automation, retraining, gate, decision; both APIs know of it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.release_log import ReleaseEntry, ReleaseLog
from pipelines.settings import load_settings
from tests.operated import Operation, ask, drift_event, operation, until, write_operated
from tests.tiny_rollout import TURNS, pump_table, write_policy

pytestmark = [pytest.mark.operations, pytest.mark.timeout(400)]
CHAIN = {"monitor": "monitor/flights-daily", "retrain": "retrain/on-drift", "approval": "approval/approval"}


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    """Servers, worker, deployments, and a live model: a pilot that no model can pass leaves the dense one."""
    folder = tmp_path_factory.mktemp("operated")
    dataset, _, _ = write_operated(folder)
    policy = write_policy(folder, latency_p50_ratio=0.0)
    with operation(folder) as running:
        command = ("rollout", "run", dataset, "--policy", policy, "--bootstrap", "in use", "--quiet")
        climbed = running.dankai(*command)
        assert climbed.code == 0, climbed.err
        yield running


@pytest.fixture(scope="module")
def chain(operated: Operation) -> dict[str, dict[str, Any]]:
    """The runs that a drifted month led to, by flow; only the first was started by hand."""
    pump_table().filter(pl.col("at") >= TURNS).write_csv(operated.folder / "incoming" / "2024-05.csv")
    monitored = operated.ended(operated.start(CHAIN["monitor"]))
    assert monitored["state_type"] == "COMPLETED", monitored["state"]
    retraining = until(lambda: operated.runs_of(CHAIN["retrain"]), 60)
    assert len(retraining) == 1
    return {"monitor": monitored, "retrain": operated.ended(retraining[0]["id"])}


def entries(operated: Operation) -> list[ReleaseEntry]:
    return ReleaseLog.open(load_settings({"DANKAI_HOME": str(operated.home)})).entries()


def test_a_drifted_batch_ends_in_a_decision_that_the_release_log_keeps(
    operated: Operation, chain: dict[str, dict[str, Any]]
) -> None:
    assert chain["monitor"]["state"]["message"].startswith("retrain: 2024-05.csv: ")
    assert chain["retrain"]["state_type"] == "COMPLETED", chain["retrain"]["state"]
    decisions = [entry.decision for entry in entries(operated)]
    actions = [str(decision.action) for decision in decisions]
    assert actions == ["bootstrap", "fail", "retrain", "request"]
    assert {decision.actor for decision in decisions[2:]} == {"deployment on-drift"}


def test_the_retraining_was_started_by_the_automation_with_the_offending_batch(
    operated: Operation, chain: dict[str, dict[str, Any]]
) -> None:
    parameters, reports = chain["retrain"]["parameters"], operated.home / "datasets" / "pump"
    assert parameters["dataset"] == str(operated.folder / "pump.yaml")
    window, _, reasons = parameters["reason"].partition(": ")
    assert window == "drift in 2024-05-01 00:00:00 to 2024-06-30 23:00:00"
    assert reasons in chain["monitor"]["state"]["message"]
    assert any(parameters["batch"] in path.read_text() for path in reports.rglob("*.json"))
    started = {"event": {"name": ["prefect.automation.action.executed"]}}
    events = operated.ask("/events/filter", {"filter": started, "limit": 50})["events"]
    related = {each["prefect.resource.id"] for event in events for each in event["related"]}
    assert f"prefect.flow-run.{chain['retrain']['id']}" in related


def test_both_apis_show_what_happened(operated: Operation, chain: dict[str, dict[str, Any]]) -> None:
    seen = operated.ask("/events/filter", {"filter": {"event": {"name": ["dankai.drift"]}}, "limit": 50})
    assert [event["resource"]["prefect.resource.name"] for event in seen["events"]] == ["pump"]
    [experiment] = ask(
        f"{operated.mlflow}/experiments/search", {"max_results": 5, "filter": "name = 'dankai'"}
    )["experiments"]
    of_it = {"experiment_ids": [experiment["experiment_id"]], "filter": "tags.kind = 'retraining'"}
    [run] = ask(f"{operated.mlflow}/runs/search", of_it)["runs"]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["reason"] == chain["retrain"]["parameters"]["reason"]
    children = {
        "experiment_ids": of_it["experiment_ids"],
        "filter": f"tags.`mlflow.parentRunId` = '{run['info']['run_id']}'",
    }
    kinds = {
        tag["value"]
        for child in ask(f"{operated.mlflow}/runs/search", children)["runs"]
        for tag in child["data"]["tags"]
        if tag["key"] == "kind"
    }
    assert {"training", "evaluation"} <= kinds
    history = operated.dankai("history", "pump", "--json")
    assert history.code == 0, history.err
    assert chain["retrain"]["parameters"]["reason"] in json.dumps(json.loads(history.out))
    pages = operated.ask("/artifacts/filter", {"artifacts": {"type": {"any_": ["markdown"]}}})
    assert {"pump-monitor-report", "pump-retraining-report"} <= {page["key"] for page in pages}
    kept = ask(f"{operated.mlflow}/artifacts/list?run_id={run['info']['run_id']}", method="GET")
    assert "report.html" in {file["path"] for file in kept["files"]}


def test_what_passed_waits_for_a_person_whose_answer_in_prefect_lets_it_in(
    operated: Operation, chain: dict[str, dict[str, Any]]
) -> None:
    """Nobody started this retraining, so nobody's word stands behind it yet."""
    [asked] = until(lambda: operated.runs_of(CHAIN["approval"]), 60)
    until(lambda: operated.ask(f"/flow_runs/{asked['id']}", method="GET")["state_name"] == "Suspended", 60)
    answer = {"name": "Ada", "approve": True, "reason": "the world changed in May"}
    operated.ask(f"/flow_runs/{asked['id']}/resume", {"run_input": answer})
    answered = operated.ended(asked["id"])
    assert answered["state_type"] == "COMPLETED", answered["state"]
    *_, approval, promotion = (entry.decision for entry in entries(operated))
    assert (str(approval.action), approval.actor) == ("approve", "Ada")
    assert (str(promotion.action), promotion.checkpoint) == ("promote", approval.checkpoint)
    model = ask(f"{operated.mlflow}/registered-models/get?name=dankai-pump", method="GET")["registered_model"]
    assert {each["alias"]: int(each["version"]) for each in model["aliases"]}["champion"] == promotion.version


def test_ten_events_within_a_minute_start_one_run(
    operated: Operation, chain: dict[str, dict[str, Any]]
) -> None:
    """Of another dataset, so that the minute of the first event is not theirs."""
    for _ in range(10):
        operated.ask("/events", [drift_event(operated.folder, "nowhere", "ten of them")])
    named = until(lambda: _runs_for(operated, "nowhere"), 60)
    time.sleep(10)
    assert len(_runs_for(operated, "nowhere")) == len(named) == 1
    failed = operated.ended(named[0]["id"])
    assert failed["state_type"] == "FAILED"
    assert "nowhere.yaml" in failed["state"]["message"]


def _runs_for(operated: Operation, dataset: str) -> list[dict[str, Any]]:
    runs = operated.runs_of(CHAIN["retrain"])
    return [run for run in runs if run["parameters"]["dataset"].endswith(f"{dataset}.yaml")]


def test_everything_stops_and_nothing_is_left(operated: Operation, chain: dict[str, dict[str, Any]]) -> None:
    family = operated.family()
    assert len(family) > 6
    assert operated.stop() < 30
    assert [process for process in family if process.is_running()] == []
    assert (operated.home / "prefect" / "prefect.db").is_file()
    assert Path(operated.home / "mlflow.db").is_file()
