"""`dankai serve` and `dankai shadow` as they are run: by HTTP and from files, next to MLflow's own server."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.clock import now
from pipelines.job import Job
from pipelines.rollout import current_state, opponent
from pipelines.serving.comparison import canary_kpis
from pipelines.serving.requests import Request
from pipelines.settings import QUIET
from tests.tiny_rollout import Preloaded, free_port, serving, wait_for_server
from validation.evidence import too_old


@dataclass
class Server:
    """A running `dankai serve`."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def ask(self, body: bytes, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        return ask(self.port, body, **headers)


def ask(port: int, body: bytes, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    fields = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request("POST", "/invocations", body, fields)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()}


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.fixture(scope="module")
def mlflow_server(
    job: Job, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """MLflow's own scoring server on the candidate's folder, as `mlflow models serve` would start it."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "mlflow.pyfunc.scoring_server.app:app", "--workers", "1"]
    environ = {**QUIET, "__pyfunc_model_path__": str(folders[1])}
    log = tmp_path_factory.mktemp("mlflow-serve") / "log"
    with serving([*command, "--host", "127.0.0.1", "--port", str(port)], environ, log):
        yield port


def serve_command(dataset: Path, policy: Path, port: int) -> list[str]:
    command = [str(Path(sys.executable).with_name("dankai")), "serve", str(dataset), "--policy", str(policy)]
    return [*command, "--port", str(port), "--deadline", "30"]


def serve_environ(job: Job) -> dict[str, str]:
    own = {"DANKAI_HOME": str(job.settings.home), "MLFLOW_TRACKING_URI": "", "DANKAI_THREADS": "1"}
    return {**os.environ, **own}


@pytest.fixture(scope="module")
def server(
    mlflow_server: int, job: Job, canary_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    dataset, policy = canary_files
    with log.open("wb") as output:
        process = subprocess.Popen(
            serve_command(dataset, policy, port), env=serve_environ(job), stdout=output, stderr=output
        )
    try:
        wait_for_server(f"http://127.0.0.1:{port}")
        yield Server(port, process, log)
    finally:
        process.kill()
        process.wait(20)


def test_replaying_stored_requests_tells_each_step_and_what_a_gate_may_ask(
    job: Job, canary_files: tuple[Path, Path], questions: list[Request], preloaded: Preloaded, tmp_path: Path
) -> None:
    stored = [
        json.loads(question.body) | {"id": f"replay-{number}"} for number, question in enumerate(questions)
    ]
    lines = [json.dumps(each) for each in stored]
    (tmp_path / "week.jsonl").write_text("\n".join([*lines[:10], "{broken", '{"inputs": {}}', *lines[10:]]))
    command = ("shadow", canary_files[0], "--policy", canary_files[1], "--requests", tmp_path / "week.jsonl")
    ended = preloaded.dankai(*command, "--json", "--quiet", "--deadline", "30", home=job.settings.home)
    assert ended.code == 0, ended.err
    [step] = json.loads(ended.out)
    assert step["verdict"]["num_requests"] >= len(questions)
    assert step["verdict"]["num_faults"] == 0
    assert "week.jsonl:11: Expecting property name" in ended.err
    assert "week:12: Model is missing inputs" in ended.err
    decisions = [each.decision for each in job.log.entries()]  # other tests' datasets are in the same log
    entry = [each for each in decisions if each.dataset == "canary"][-1]
    live = opponent(current_state(job.log, "canary"), entry.checkpoint)
    asked = partial(canary_kpis, job.settings, "canary", snapshot=entry.snapshot, confidence=0.95)
    kpis = asked(candidate=entry.checkpoint, incumbent=live, min_requests=len(questions))
    names = {"shadow_disagreement", "canary_error_rate", "canary_latency_ratio"}
    assert {(kpi.name, kpi.slice) for kpi in kpis} == {
        (name, slice) for name in names for slice in ("", "share=0")
    }
    assert {kpi.n for kpi in kpis} == {step["verdict"]["num_requests"]}
    assert {kpi.confidence for kpi in kpis} == {0.95}
    assert all(not too_old(kpi.measured_at, 1.0, now()) for kpi in kpis)
    assert asked(candidate=entry.checkpoint, incumbent=live, min_requests=10_000) == []
    assert asked(candidate=entry.checkpoint, incumbent="f" * 64, min_requests=1) == []
    assert asked(candidate="f" * 64, incumbent=live, min_requests=1) == []


def test_what_cannot_be_served_is_one_line(
    job: Job, canary_files: tuple[Path, Path], preloaded: Preloaded, tmp_path: Path
) -> None:
    dataset, policy = canary_files
    for arguments, said in (
        (("shadow", dataset, "--policy", policy, "--requests", tmp_path / "no.jsonl"), "no request file"),
        (("serve", dataset, "--policy", policy, "--candidate", 99, "--port", 0), "there is no version 99"),
        (("serve", dataset, "--policy", policy, "--candidate", 1, "--port", 0), "is live already"),
        (("serve", dataset, "--policy", policy, "--again", "why", "--port", 0), "no breach"),
    ):
        ended = preloaded.dankai(*arguments, home=job.settings.home)
        assert ended.code == 2, ended
        assert said in ended.err
        assert len(ended.err.splitlines()) == 1
    empty = preloaded.dankai("serve", dataset, "--policy", policy, "--port", 0, home=tmp_path / "home")
    assert "nothing is live yet; run: dankai rollout run" in empty.err


def test_it_answers_by_mlflows_contract_with_budget_as_a_parameter(
    server: Server, mlflow_server: int, questions: list[Request]
) -> None:
    """The candidate in MLflow's own server, over HTTP, at several budgets; the incumbent here."""
    for path in ("/ping", "/health", "/version"):
        assert get(server.port, path)[0] == 200
    status, ours, headers = server.ask(questions[0].body, X_Request_Id="plant-7:42")
    assert status == 200
    assert headers["x-request-id"] == "plant-7:42"
    assert headers["x-answered-by"] == "incumbent, version 1"
    wait_for_server(f"http://127.0.0.1:{mlflow_server}")
    content = json.loads(questions[0].body)
    by_budget = {
        budget: ask(mlflow_server, json.dumps(content | {"params": {"budget": budget}}).encode())
        for budget in (0.0, 0.25, 0.5, 2.0)
    }
    assert [by_budget[budget][0] for budget in (0.0, 0.25, 0.5, 2.0)] == [200, 200, 200, 400]
    dense = by_budget[0.0][1]["predictions"][0]
    assert [step[0] for step in ours["predictions"][0]] == pytest.approx(
        [step[0] for step in dense], abs=1e-5
    )
    assert ask(mlflow_server, questions[0].body)[1] == by_budget[0.25][1]
    assert by_budget[0.25][1] != by_budget[0.5][1]


def test_what_is_malformed_gets_a_4xx_of_one_line_and_the_next_one_is_answered(
    server: Server, questions: list[Request]
) -> None:
    for body, headers in (
        (b"{", {}),
        (b"{}", {}),
        (questions[0].body, {"Content_Type": "text/csv"}),
        (questions[0].body, {"X_Request_Id": "no plain word"}),
        (b" " * (17 << 20), {}),
        (json.dumps({"inputs": {"numeric": [[["a"]]]}}).encode(), {}),
    ):
        status, answer, _ = server.ask(body, **headers)
        assert 400 <= status < 500, answer
        assert answer["message"].strip()
        assert "\n" not in answer["message"]
    assert server.ask(questions[0].body)[0] == 200


def test_callers_at_the_same_time_each_get_their_own_answer(server: Server, questions: list[Request]) -> None:
    alone = [server.ask(question.body)[1] for question in questions[:8]]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda question: server.ask(question.body)[1], questions[:8]))
    assert together == alone
    assert together[0] != together[1]


def test_the_ladder_is_told_and_a_second_server_of_the_dataset_is_refused(
    server: Server, job: Job, canary_files: tuple[Path, Path], preloaded: Preloaded
) -> None:
    [step] = json.loads(get(server.port, "/ladder")[1])
    assert step["verdict"]["share"] == 0.0
    assert step["verdict"]["num_faults"] == 0
    second = preloaded.dankai(
        *("serve", canary_files[0], "--policy", canary_files[1], "--port", free_port()),
        home=job.settings.home,
    )
    assert second.code == 2
    assert "another process is at work here" in second.err
    taken = preloaded.dankai(
        *("serve", canary_files[0], "--policy", canary_files[1], "--port", server.port),
        home=job.settings.home,
    )
    assert taken.code == 2
    assert f"--port {server.port}: Address already in use" in taken.err


def family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_stopping_it_leaves_no_process_behind(server: Server) -> None:
    started = family(server.process)
    assert len(started) >= 3  # the nursery and two models
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0, server.log.read_text()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_kill_9_of_the_front_door_leaves_no_process_behind(
    number: signal.Signals, job: Job, canary_files: tuple[Path, Path], tmp_path: Path
) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            serve_command(*canary_files, free_port()),
            env=serve_environ(job),
            stdout=log,
            stderr=log,
            # tests that run in the background of a shell are started with Ctrl-C ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_until_it_serves(process, tmp_path / "log")
        started = family(process)
        assert len(started) >= 2  # the nursery and a model
        process.send_signal(number)
        process.wait(30)
        _, alive = psutil.wait_procs(started, timeout=20)
        assert alive == []
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait(20)


def wait_until_it_serves(process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 90
    while "/invocations" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
