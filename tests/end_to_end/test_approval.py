"""A climb that waits for a person, who answers in Prefect; and the commands around it."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.actors import account_name
from pipelines.decisions import apply_verdict, terms_of
from pipelines.release_log import ReleaseLog
from pipelines.rollout import RolloutState, current_state
from pipelines.settings import load_settings
from tests.release_cases import ADA, started, verdict, version
from tests.tiny_rollout import Ended, Preloaded, write_dataset, write_policy
from validation.policy import Approval

ROOT = Path(__file__).parents[2]
ONE = {"approval": "required", "approvers": 1, "trainer_may_approve": True, "expires_hours": 24}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("approval")


@pytest.fixture(scope="module")
def command(home: Path) -> tuple[object, ...]:
    """A rollout whose promotion to training needs a person."""
    path = write_policy(home)
    policy = yaml.safe_load(path.read_text())
    policy["stages"]["training"] |= ONE
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    dataset = write_dataset(home, "asked")
    return ("rollout", "run", dataset, "--policy", path, "--quiet", "--bootstrap", "in use since May")


@pytest.fixture(scope="module")
def ended(command: tuple[object, ...], home: Path, preloaded: Preloaded) -> Ended:
    """The second run: the first was killed with the case kept and nobody asked yet."""
    killed = preloaded.dankai(*command, home=home, hook="first after pipelines.release:keep_case")
    assert killed.code == -9, killed
    assert [entry.decision.action for entry in log_of(home).entries()] == ["bootstrap"]
    return preloaded.dankai(*command, home=home)


def log_of(home: Path) -> ReleaseLog:
    return ReleaseLog.of(load_settings({"DANKAI_HOME": str(home)}))


def state_of(home: Path) -> RolloutState:
    return current_state(log_of(home), "asked")


def request_of(home: Path) -> str:
    pending = state_of(home).pending
    assert pending is not None
    return pending.id


def refused(ended: Ended) -> str:
    assert (ended.code, ended.out) == (2, ""), ended
    [line] = ended.err.splitlines()
    assert line.startswith("dankai: ")
    return line


def test_a_climb_that_needs_people_stops_and_says_what_to_type(ended: Ended, home: Path) -> None:
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    assert (
        "Version 2 passed its gate; going from pilot to training waits for the approval of 1 person" in said
    )
    assert f'dankai approve {request_of(home)} --as NAME --reason "..."' in said
    request = log_of(home).entries()[-1].decision
    assert (request.action, request.outcome) == ("request", "PASS")
    assert request.terms is not None
    assert request.terms.trainer == account_name()


def test_running_it_again_asks_nobody_twice_and_tells_of_an_alias_moved_by_hand(
    ended: Ended, command: tuple[object, ...], home: Path, preloaded: Preloaded
) -> None:
    before = log_of(home).entries()
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("DELETE FROM registered_model_aliases WHERE alias = 'champion'")
    again = preloaded.dankai(*command, home=home)
    assert "waits for the approval of 1 person" in " ".join(again.out.split())
    assert log_of(home).entries() == before
    moved = "dankai-asked: alias champion was gone, moved by hand in MLflow; back at version 1"
    [warned] = again.err.splitlines()
    assert warned.endswith(moved)
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        noted = database.execute("SELECT value FROM tags WHERE key = 'aliases_put_right'").fetchall()
    assert noted == [(moved,)]


def test_wrong_answers_change_nothing(ended: Ended, home: Path, preloaded: Preloaded) -> None:
    before, request = log_of(home).entries(), request_of(home)

    def approve(*words: str, mlflow: str = "") -> str:
        return refused(preloaded.dankai("approve", *words, home=home, MLFLOW_TRACKING_URI=mlflow))

    assert f"waiting for approval: {request} (asked)" in approve("0000beef", "--as", "Ada", "--reason", "x")
    assert "--reason: say why in one line" in approve(request, "--as", "Ada", "--reason", " ")
    assert "--as: '' is no name" in approve(request, "--as", " ", "--reason", "x")
    nowhere = "http://127.0.0.1:9"
    assert "does not answer" in approve(request, "--as", "Ada", "--reason", "x", mlflow=nowhere)
    dataset = home / "asked.yaml"
    content = dataset.read_text()
    dataset.write_text(content.replace("num_steps: 12", "num_steps: 13"))
    assert "changed since the request" in approve(request, "--as", "Ada", "--reason", "x")
    dataset.write_text(content)
    [case] = (home / "datasets" / "asked" / "cases").iterdir()
    kept = case.read_text()
    for edited in (edited_policy(kept), edited_reference(kept)):
        case.write_text(edited)
        said = approve(request, "--as", "Ada", "--reason", "x")
        assert f"{case}: it was edited: its signature does not hold; run the rollout again" in said
    case.write_text(kept)
    assert log_of(home).entries() == before


def edited_policy(case: str) -> str:
    """The case with a policy that asks for less."""
    content = json.loads(case)
    content["case"]["policy"]["min_windows"] = 1
    return json.dumps(content)


def edited_reference(case: str) -> str:
    """The case with the candidate as its own reference, weights and sum."""
    content = json.loads(case)
    content["case"]["lineup"]["dense"] = content["case"]["lineup"]["candidate"]
    return json.dumps(content)


def test_a_person_lets_it_in_after_a_second_look_and_two_are_counted_by_account(
    ended: Ended, home: Path, preloaded: Preloaded, prefect_server: str, tmp_path: Path
) -> None:
    two_persons = ReleaseLog.open(load_settings({"DANKAI_HOME": str(tmp_path)}))
    terms = terms_of(Approval(approvers=2, trainer_may_approve=True, expires_hours=1), "cleo")
    apply_verdict(two_persons, started(two_persons), version(2), verdict("pilot", 2), ADA, terms)
    before, request = two_persons.entries(), request_of(home)

    answered = in_prefect(home, tmp_path, prefect_server)
    assert answered["shown"][0] == "Completed"
    assert answered["shown"][1].startswith("To be answered at the command line, by proven accounts.")
    assert two_persons.entries() == before
    # A blank reason is refused, and the request is asked anew in a run of its own.
    assert answered["asked"] == ["Suspended", "Failed", "Suspended", "Completed"]
    assert answered["fields"] == ["approve", "name", "reason"]
    assert answered["num_runs"] == 3
    *_, approval, promotion = (entry.decision for entry in log_of(home).entries())
    assert (approval.action, approval.actor, approval.account) == ("approve", "Bob", "")
    assert approval.request is not None
    assert approval.request.startswith(request)
    assert (promotion.action, promotion.to_stage, promotion.version) == ("promote", "training", 2)
    assert (state_of(home).champion, state_of(home).pending) == (2, None)


PREFECT = """
import json, os, sys
from contextlib import suppress
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.input import keyset_from_paused_state
from flows.approval import approval, offer

with get_client(sync_client=True) as client:
    def runs():
        flow = client.read_flow_by_name("approval")
        return [run for run in client.read_flow_runs() if run.deployment_id and run.flow_id == flow.id]

    def work():
        '''As a worker does it: the one open run as the server has it.'''
        [run] = [run for run in runs() if not run.state.is_final()]
        with suppress(Pause):
            run_flow(approval, flow_run=run, parameters=run.parameters, return_type="state")
        return client.read_flow_run(run.id)

    def answer(run, reason):
        given = {"name": "Bob", "approve": True, "reason": reason}
        client.resume_flow_run(run.id, run_input=given)
        return work()

    home = os.environ["DANKAI_HOME"]
    os.environ["DANKAI_HOME"] = sys.argv[1]
    offer()
    shown = work()
    offer()  # it was said once
    os.environ["DANKAI_HOME"] = home
    offer()
    offer()  # it is asked once
    first = work()
    schema = client.read_flow_run_input(first.id, keyset_from_paused_state(first.state)["schema"])
    refused = answer(first, " ")
    second = work()
    done = answer(second, "seen in the UI")
    asked = [run.state.name for run in (first, refused, second, done)]
    fields = sorted(json.loads(schema)["properties"])
    shown = [shown.state.name, shown.state.message]
    print(json.dumps({"shown": shown, "asked": asked, "fields": fields, "num_runs": len(runs())}))
"""


def in_prefect(home: Path, two_persons: Path, server: str) -> dict[str, Any]:
    """What Prefect shows of a request for two persons, and what becomes of the one in `home` there."""
    environ = {"DANKAI_HOME": str(home), "PREFECT_API_URL": server, "PREFECT_HOME": str(home / "prefect")}
    done = subprocess.run(
        [sys.executable, "-c", PREFECT, str(two_persons)],
        capture_output=True,
        text=True,
        env={**os.environ, **environ, "MLFLOW_TRACKING_URI": "", "DANKAI_THREADS": "1"},
        cwd=ROOT,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
