"""The same flow against a real Prefect server and a real MLflow server."""

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.files import exclusive_lock
from pipelines.release_log import ReleaseLog
from pipelines.settings import load_settings
from pipelines.signing import VARIABLE, load_key
from tests.key_traces import traces_of
from tests.tiny_rollout import (
    Ended,
    Preloaded,
    free_port,
    wait_for_server,
    write_dataset,
    write_policy,
)

KEY = base64.b64encode(bytes(range(7, 39))).decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the MLflow server: a fresh home folder and its log."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def ui(served: Path, mlflow_server: str) -> "Iterator[subprocess.Popen[bytes]]":
    """`dankai ui`: MLflow's own server over what was tracked in a home folder."""
    command = [str(Path(sys.executable).with_name("dankai")), "ui", "--port", mlflow_server.rsplit(":", 1)[1]]
    environ = {**os.environ, "DANKAI_HOME": str(served / "home"), "MLFLOW_TRACKING_URI": ""}
    with (served / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    yield server
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def mlflow_server() -> str:
    """The address that it gets."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def ended(ui: object, mlflow_server: str, home: Path, preloaded: Preloaded) -> Ended:
    """A rollout whose pilot no model can pass: an answer in no time at all."""
    write_dataset(home, "served")
    policy = write_policy(home, latency_p50_ratio=0.0)
    wait_for_server(mlflow_server)
    command = ("rollout", "run", home / "served.yaml", "--policy", policy)
    command += ("--bootstrap", "the dense model in use")
    return preloaded.dankai(*command, home=home, MLFLOW_TRACKING_URI=mlflow_server, DANKAI_SIGNING_KEY=KEY)


def ask(address: str, question: dict[str, Any]) -> Any:
    body = json.dumps(question).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _until_recorded(look: Callable[[], list[Any]], seconds: float = 20) -> list[Any]:
    """Prefect records task runs from events, a moment after they ended."""
    deadline = time.monotonic() + seconds
    while True:
        tasks = look()
        is_whole = any(task["name"].startswith("decide") for task in tasks)
        if (
            is_whole and {task["state_type"] for task in tasks} == {"COMPLETED"}
        ) or time.monotonic() > deadline:
            return tasks
        time.sleep(0.2)


def test_a_gate_that_does_not_pass_stops_the_climb_and_the_job_is_still_done(
    ended: Ended, home: Path
) -> None:
    assert ended.code == 0, ended.err
    sentence = "The climb stopped at the pilot gate with FAIL: latency_p50_ratio"
    assert sentence in " ".join(ended.out.split())
    summary = json.loads((home / "summary.json").read_text())
    assert summary["sentence"].startswith(sentence)
    assert summary["state"]["releases"][-1]["stage"] == "pilot"
    assert summary["bundle"] is None
    assert not (home / "datasets" / "served" / "bundles").exists()
    entries = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})).entries()
    assert [str(entry.decision.action) for entry in entries] == ["bootstrap", "fail"]


def test_prefect_knows_the_flow_and_its_tasks(ended: Ended, prefect_server: str) -> None:
    newest = {"sort": "START_TIME_DESC", "limit": 50}
    runs = ask(f"{prefect_server}/flow_runs/filter", newest)
    [run] = [run for run in runs if run["parameters"].get("dataset", "").endswith("served.yaml")]
    assert run["state_type"] == "COMPLETED"
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = _until_recorded(lambda: ask(f"{prefect_server}/task_runs/filter", of_run))
    names = {re.sub(r"-\w+$", "", each["name"]) for each in tasks}
    assert {"snapshot", "validate data", "prepare", "baseline", "decide", "pilot gate"} <= names
    assert {"train dense, seed 0", "train selector, seed 0", "score dense on test"} <= names
    assert {each["state_type"] for each in tasks} == {"COMPLETED"}


def test_prefect_says_in_words_what_came_of_it(ended: Ended, prefect_server: str) -> None:
    """Names, states and artifacts that a stranger understands without reading a log."""
    newest = {"sort": "START_TIME_DESC", "limit": 50}
    runs = ask(f"{prefect_server}/flow_runs/filter", newest)
    [run] = [run for run in runs if run["parameters"].get("dataset", "").endswith("served.yaml")]
    assert run["name"] == "served: rollout, the dense model in use"
    assert run["state"]["name"] == "FAIL at pilot"
    assert run["state"]["message"].startswith("The climb stopped at the pilot gate with FAIL")
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = _until_recorded(lambda: ask(f"{prefect_server}/task_runs/filter", of_run))
    [gate] = [each for each in tasks if each["name"] == "pilot gate"]
    assert gate["state_name"] == "FAIL"
    made = {each["key"]: each for each in ask(f"{prefect_server}/artifacts/filter", of_run)}
    assert {made[key]["type"] for key in ("served-pilot-gate", "served-data-docs", "served-mlflow")} == {
        "table",
        "markdown",
    }
    assert "| " not in made["served-pilot-gate"]["description"]


def test_mlflow_knows_every_run_with_its_parent_and_evidence(ended: Ended, mlflow_server: str) -> None:
    api = f"{mlflow_server}/api/2.0/mlflow"
    experiment = ask(f"{api}/experiments/search", {"max_results": 5, "filter": "name = 'dankai'"})
    of_it = {"experiment_ids": [experiment["experiments"][0]["experiment_id"]], "max_results": 50}
    runs = ask(f"{api}/runs/search", of_it)["runs"]
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
    assert sorted(tag["kind"] for tag in tags) == [
        "baseline",
        "evaluation",
        "payback",
        "rollout",
        "stage",
        "training",
        "training",
    ]
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    [parent] = [
        run["info"]["run_id"] for run, tag in zip(runs, tags, strict=True) if tag["kind"] == "rollout"
    ]
    [pilot] = [run["info"]["run_id"] for run, tag in zip(runs, tags, strict=True) if tag["kind"] == "stage"]
    for run, tag in zip(runs, tags, strict=True):
        assert tag["env.lock"]
        if tag["kind"] != "rollout":
            is_in_stage = tag["kind"] in ("evaluation", "payback") or tag.get("mode") == "selector"
            assert tag["mlflow.parentRunId"] == (pilot if is_in_stage else parent)
        if tag["kind"] in ("rollout", "stage"):
            assert (tag["dataset"], tag["stage"], tag["verdict"]) == ("served", "pilot", "FAIL")
        if tag["kind"] not in ("rollout", "stage", "payback"):  # which rest on no data of their own
            assert run["inputs"]["dataset_inputs"][0]["dataset"]["name"] == "served"
        if tag["kind"] == "training":
            metrics = {metric["key"] for metric in run["data"]["metrics"]}
            assert {"validation_loss", "train_loss", "system/cpu_utilization_percentage"} <= metrics
            assert "plan.num_steps" in {param["key"] for param in run["data"]["params"]}


def test_the_registry_of_the_server_holds_the_incumbent_as_champion(ended: Ended, mlflow_server: str) -> None:
    address = f"{mlflow_server}/api/2.0/mlflow/registered-models/get?name=dankai-served"
    with urllib.request.urlopen(address, timeout=30) as answer:
        model = json.load(answer)["registered_model"]
    assert {(alias["alias"], str(alias["version"])) for alias in model["aliases"]} == {("champion", "1")}
    assert "the release log is the truth" in model["description"]


def test_every_version_has_its_card(ended: Ended, home: Path, mlflow_server: str) -> None:
    """What the gate measured and who let it in, on the version's page, in its run and on disk."""
    address = f"{mlflow_server}/api/2.0/mlflow/model-versions/get?name=dankai-served&version="
    cards = {}
    for number in (1, 2):
        with urllib.request.urlopen(f"{address}{number}", timeout=30) as answer:
            cards[number] = json.load(answer)["model_version"]["description"]
        path = home / "datasets" / "served" / "model_cards" / f"version-{number}" / "model_card.md"
        assert path.read_text() == cards[number]
    assert "No gate was asked" in cards[1]
    assert "| bootstrap | none, pilot |" in cards[1]
    assert "the dense model in use" in cards[1]
    assert "pilot gate" in cards[2]
    assert "**FAIL**" in cards[2]
    assert "| fail | pilot, pilot |" in cards[2]


def test_a_training_by_hand_does_not_join_one_that_is_at_work(
    ended: Ended, mlflow_server: str, home: Path, preloaded: Preloaded
) -> None:
    """Of whatever dataset: there is one accelerator."""
    for command in (
        ("retrain", home / "served.yaml", "--reason", "new pump"),
        ("rollout", "run", home / "served.yaml"),
    ):
        with exclusive_lock(home / "training.lock"):
            refused = preloaded.dankai(
                *command,
                "--policy",
                home / "policy-1.yaml",
                home=home,
                MLFLOW_TRACKING_URI=mlflow_server,
                DANKAI_SIGNING_KEY=KEY,
            )
        assert (refused.code, refused.out) == (2, "")
        assert f"{home / 'training.lock'}: another process is at work here" in refused.err


def test_a_key_from_the_environment_reaches_no_server_and_no_file(
    ended: Ended, home: Path, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Home folder, MLflow's database and artifacts, Prefect's database, every log, what was printed."""
    places = [
        home,
        *tmp_path_factory.getbasetemp().glob("mlflow*"),
        shared_folder / "prefect",
        shared_folder / "preloaded",
    ]
    everything = [path for place in places for path in place.rglob("*")]
    assert any(path.name == "mlflow.db" for path in everything)
    assert any(path.name == "prefect.db" for path in everything)
    key = load_key(home / "keys", {VARIABLE: KEY})
    assert traces_of(key, everything, (ended.out, ended.err)) == []
    assert not (home / "keys" / "signing.key").exists()


def test_the_ui_that_served_a_fresh_home_ends_with_sigterm(
    ui: "subprocess.Popen[bytes]", mlflow_server: str, served: Path
) -> None:
    assert ui.poll() is None
    ui.terminate()
    ui.wait(15)
    assert f"MLflow UI: {mlflow_server}" in (served / "log").read_text()
    deadline = time.monotonic() + 10
    while healthy(mlflow_server):
        assert time.monotonic() < deadline, "what it started goes on answering"
        time.sleep(0.1)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.read() == b"OK"
    except OSError:
        return False
