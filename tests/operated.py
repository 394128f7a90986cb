"""`dankai up` on a tiny dataset, its servers' APIs, and what a month of new rows brings."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import polars as pl
import psutil
import yaml

from tests.tiny_rollout import ROOT, TURNS, Ended, dankai, free_port, pump_table, write_dataset, write_policy

T = TypeVar("T")
_DANKAI = str(Path(sys.executable).with_name("dankai"))
SPLIT = {"validation": "2024-04-05", "test": "2024-04-15"}
"""The rows up to the turn: everything after it arrives in batches."""


@dataclass
class Operation:
    """A running `dankai up` and the dataset it operates."""

    folder: Path
    process: "subprocess.Popen[str]"
    prefect: str
    mlflow: str
    environ: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def dankai(self, *arguments: object) -> Ended:
        """Run the installed command against the servers."""
        return dankai(*arguments, home=self.home, timeout=300, **self.environ)

    def ask(self, path: str, question: Any = None, method: str = "POST") -> Any:
        """Prefect's API."""
        return ask(f"{self.prefect}{path}", question, method)

    def deployment(self, name: str) -> dict[str, Any]:
        return self.ask(f"/deployments/name/{name}", method="GET")

    def start(self, name: str, **parameters: Any) -> str:
        """Id of a run of the deployment (FLOW/DEPLOYMENT), started now."""
        run = self.ask(
            f"/deployments/{self.deployment(name)['id']}/create_flow_run", {"parameters": parameters}
        )
        return run["id"]

    def runs_of(self, name: str) -> list[dict[str, Any]]:
        """Flow runs of the deployment, oldest first; a schedule's that lie ahead are left out."""
        of_it = {
            "deployments": {"id": {"any_": [self.deployment(name)["id"]]}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        runs = self.ask("/flow_runs/filter", of_it)
        return [run for run in runs if not run["auto_scheduled"]]

    def ended(self, run: str, seconds: float = 150) -> dict[str, Any]:
        """The run once it is over."""
        return until(lambda: _if_over(self.ask(f"/flow_runs/{run}", method="GET")), seconds)

    def family(self) -> list[psutil.Process]:
        """Every process of the operation, `dankai up` first."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def running(self, words: str) -> psutil.Process:
        """The process of the operation, not a guard, whose command line holds the words."""
        return next(
            each for each in self.family() if words in _line(each) and "flows.guard" not in _line(each)
        )

    def stop(self) -> float:
        """Stop it as Ctrl-C does; the seconds that it took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        return time.monotonic() - started


def write_operated(folder: Path) -> tuple[Path, Path, Path]:
    """Dataset file, policy and deployments of the pump up to its turn."""
    dataset = write_dataset(folder, table=pump_table().filter(pl.col("at") < TURNS), split=SPLIT)
    policy, deployments = write_policy(folder), folder / "prefect.yaml"
    _let_in(policy)
    (folder / "incoming").mkdir()
    content = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())
    for each in content["deployments"]:
        ours = {"dataset": str(dataset), "policy": str(policy), "batches": str(folder / "incoming")}
        parameters = each.get("parameters", {})
        parameters |= {key: value for key, value in ours.items() if key in parameters}
    deployments.write_text(yaml.safe_dump(content, sort_keys=False))
    return dataset, policy, deployments


def _let_in(policy: Path) -> None:
    """A challenger need not be proven better than anything: so tiny a model proves nothing."""
    content = yaml.safe_load(policy.read_text())
    for threshold in content["stages"]["steady"]["quality"]:
        threshold |= {"margin": 0.9} if "margin" in threshold else {}
    policy.write_text(yaml.safe_dump(content, sort_keys=False))


@contextmanager
def operation(
    folder: Path, *parts: str, program: Sequence[str] = (_DANKAI,), **environ: str
) -> Iterator[Operation]:
    """A `dankai up` of all or some parts for the length of the block; killed at its end if it still runs.

    Its servers listen at the ports of PREFECT_API_URL and MLFLOW_TRACKING_URI, free ones where none is named.
    """
    reach = {
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
        "DANKAI_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **environ,
    }
    command = [*program, "up", *parts, "--deployments", str(folder / "prefect.yaml")]
    for option, name in (("--prefect-port", "PREFECT_API_URL"), ("--mlflow-port", "MLFLOW_TRACKING_URI")):
        command += [option, str(urlsplit(reach[name]).port)]
    process = subprocess.Popen(
        command,
        env={**os.environ, **reach, "DANKAI_HOME": str(folder / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        _until_up(process)
        address = f"{reach['MLFLOW_TRACKING_URI']}/api/2.0/mlflow"
        yield Operation(folder, process, reach["PREFECT_API_URL"], address, reach)
    finally:
        process.kill()
        process.communicate()


def drift_event(folder: Path, dataset: str, reason: str) -> dict[str, Any]:
    """What a drift decision emits, about the dataset file of this name in the folder."""
    payload = {"dataset": str(folder / f"{dataset}.yaml"), "policy": str(folder / "policy-0.yaml")}
    payload |= {"batch": "0" * 64, "reason": reason, "start": "2024-05-01", "end": "2024-06-30"}
    resource = {"prefect.resource.id": f"dankai.dataset.{dataset}", "prefect.resource.name": dataset}
    occurred, number = datetime.now(UTC).isoformat(), str(uuid.uuid4())
    event = {"event": "dankai.drift", "resource": resource, "payload": payload}
    return {**event, "id": number, "occurred": occurred}


def ask(address: str, question: Any = None, method: str = "POST") -> Any:
    """JSON answer of an API."""
    body = json.dumps(question if question is not None else {}).encode() if method == "POST" else None
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content = answer.read()
    return json.loads(content) if content else None


def until(look: Callable[[], T | None], seconds: float = 60) -> T:
    """The first answer of `look` that says something."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"nothing after {seconds:g} s"
        time.sleep(0.5)


def _if_over(run: dict[str, Any]) -> dict[str, Any] | None:
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def _until_up(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("everything is up"):
            return
    raise AssertionError("".join(said))


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
