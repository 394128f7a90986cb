"""kill -9 of each part at each step of a retraining: `python -m tests.faults.retraining_faults`.

Real servers, a real PostgreSQL, real kills. After each of them the retraining has to end, or to be marked as
failed with its reason and end when it is asked for again; nothing decided twice or lost, no slot taken, no
lock held, no process left. Writes pipelines/benchmarks/results/faults.json, cell by cell.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import yaml

from pipelines.files import exclusive_lock, replace_file
from pipelines.release_log import ReleaseLog
from pipelines.settings import load_settings
from tests import postgres
from tests.operated import Operation, drift_event, operation, until, write_operated
from tests.tiny_rollout import ROOT, TURNS, dankai, pump_table, write_policy

RESULTS = ROOT / "pipelines" / "benchmarks" / "results" / "faults.json"
STEPS = {
    "reading": "pipelines.retraining:known_data",
    "training": "pipelines.training:Fit.training_step",
    "registering": "pipelines.registry:Tracker.register_version",
    "judging": "pipelines.retraining:judge_stage",
    "deciding": "pipelines.release:apply_verdict",
    "reconciling": "pipelines.release:reconcile",
}
"""The call before which the retraining stands when the part dies, in its own order."""
PARTS = {
    "worker": "prefect worker start",
    "retraining": "prefect.engine",
    "Prefect server": "prefect server start",
    "MLflow server": "mlflow.server.fastapi_app",
    "everything, stopped": "",
    "everything, killed": "",
    "database": "",
}
"""What dies, and the words that its process is known by."""
RETRAIN = "retrain/on-drift"
MEND_S = 240.0


@dataclass
class Fault:
    """One kill at one step, in a home folder that starts from the same state each time."""

    folder: Path
    part: str
    step: str
    database: str = ""
    wrong: list[str] = field(default_factory=list)

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def play(self) -> str:
        """What became of the retraining; what is not as it has to be is noted in `wrong`."""
        self.gate.mkdir()
        gate = f"{self.gate}={STEPS[self.step]}"
        environ = {"DANKAI_TEST_GATE": gate, "DANKAI_DATABASE_URL": self.database}
        with operation(self.folder, **environ) as running:
            running.ask("/events", [drift_event(self.folder, "pump", "a fault test")])
            until(lambda: (self.gate / "reached").exists(), 120)
            family = running.family()
            end(running, self.part)
            (self.gate / "go").touch()
            if running.process.poll() is None:
                return self._mended(running)
        psutil.wait_procs(family, 30)
        self._expect(not [each for each in family if each.is_running()], "processes are left")
        with operation(self.folder, **environ) as again:
            return self._mended(again)

    def _mended(self, running: Operation) -> str:
        [run] = until(lambda: running.runs_of(RETRAIN), 60)
        outcome = self._outcome(running, running.ended(run["id"], MEND_S))
        self._look_around(running)
        family = running.family()
        running.stop()
        self._expect(not [each for each in family if each.is_running()], "processes are left")
        return outcome

    def _outcome(self, running: Operation, ended: dict[str, Any]) -> str:
        if ended["state_type"] == "COMPLETED":
            return "finished by itself"
        self._expect(bool(ended["state"]["message"]), f"{ended['state_type']} without a reason")
        again = running.ended(running.start(RETRAIN, **ended["parameters"]), MEND_S)
        self._expect(again["state_type"] == "COMPLETED", f"asked again: {again['state']['message']}")
        return "marked with its reason, finished when asked again"

    def _look_around(self, running: Operation) -> None:
        """Nothing decided twice or lost, no slot taken, no lock held."""
        settings = load_settings({"DANKAI_HOME": str(running.home), "DANKAI_DATABASE_URL": self.database})
        actions = [str(entry.decision.action) for entry in ReleaseLog.open(settings).entries()]
        self._expect(actions.count("retrain") == 1, f"challengers entered: {actions}")
        decided = [action for action in actions[actions.index("retrain") :] if action != "retrain"]
        self._expect(len(decided) == 1, f"decisions on it: {decided}")
        audited = running.dankai("audit", "verify")
        self._expect(audited.code == 0, f"audit: {audited.err}")
        agrees = running.dankai("reconcile")
        self._expect("agree with the release log" in agrees.out, f"aliases: {agrees.out}{agrees.err}")
        limit = running.deployment(RETRAIN)["global_concurrency_limit"]
        self._expect(limit["active_slots"] == 0, f"slots taken: {limit['active_slots']}")
        for lock in ("pump.lock", "training.lock"):
            with exclusive_lock(running.home / lock, wait=False):
                pass

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


def end(running: Operation, part: str) -> None:
    """kill -9, or a stop of everything. A database is started again at once, the rest `dankai up` mends."""
    if part == "everything, stopped":
        running.stop()
    elif part == "everything, killed":
        running.process.kill()
        running.process.wait()
    elif part == "database":
        postgres.kill_and_restart(running.environ["DANKAI_DATABASE_URL"])
    else:
        running.running(PARTS[part]).kill()
    time.sleep(1)


@contextmanager
def home_with_live_model(folder: Path, database: str) -> Iterator[Callable[[], None]]:
    """The operated pump, its dense model live; the answer puts everything back to that state."""
    folder.mkdir()
    dataset, _, deployments = write_operated(folder)
    content = yaml.safe_load(deployments.read_text())
    for each in content["deployments"]:
        if each["name"] == "on-drift":
            each["entrypoint"] = "tests/faults/gated.py:retrain"
    deployments.write_text(yaml.safe_dump(content))
    table = pump_table().filter(pl.col("at") >= TURNS)
    table.write_csv(folder / "incoming" / "2024-05.csv")
    policy = write_policy(folder, latency_p50_ratio=0.0)  # it need not climb for a retraining
    command = ("rollout", "run", dataset, "--policy", policy, "--bootstrap", "in use", "--quiet")
    monitor = ("monitor", dataset, folder / "incoming" / "2024-05.csv", "--policy", policy)
    with operation(folder, DANKAI_DATABASE_URL=database) as running:
        quietly = {**running.environ, "PREFECT_API_URL": ""}  # the drift's event is for each cell to send
        for arguments in (command, monitor):
            done = dankai(*arguments, home=running.home, timeout=300, **quietly)
            assert done.code == 0, done.err
        running.stop()
    kept = folder.with_name(f"{folder.name}-kept")
    shutil.copytree(folder, kept)

    def back() -> None:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)

    yield back
    shutil.rmtree(kept)


def run_cells(folder: Path, names: list[tuple[str, str]], database: str = "") -> Iterator[dict[str, Any]]:
    """Each named (part, step) from the same state of the files; a database goes on from where it is."""
    with home_with_live_model(folder, database) as back:
        for part, step in names:
            back()
            started, fault = time.monotonic(), Fault(folder, part, step, database)
            try:
                outcome = fault.play()
            except Exception as error:  # the matrix says so and goes on
                outcome = "not known"
                fault.wrong.append(f"{type(error).__name__}: {str(error)[:300]}")
            seconds = round(time.monotonic() - started)
            yield {"part": part, "step": step, "outcome": outcome, "wrong": fault.wrong, "seconds": seconds}


def cells_of(names: list[tuple[str, str]], folder: Path) -> Iterator[dict[str, Any]]:
    """Servers die on SQLite, the database on a PostgreSQL, whose state is made anew for each kill."""
    if on_files := [name for name in names if name[0] != "database"]:
        yield from run_cells(folder / "files", on_files)
    if on_postgres := [name for name in names if name[0] == "database"]:
        with postgres.server() as address:
            for name in on_postgres:
                yield from run_cells(folder / name[1], [name], postgres.new_database(address))


def main() -> None:
    """Every cell, or those whose PART/STEP holds the words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    names = [(part, step) for part in PARTS for step in STEPS if chosen.only in f"{part}/{step}"]
    cells = []
    with tempfile.TemporaryDirectory(prefix="dankai-faults-") as folder:
        for cell in cells_of(names, Path(folder)):
            cells.append(cell)
            report(chosen.output, cells)


def report(path: Path, cells: list[dict[str, Any]]) -> None:
    """The matrix so far, with counts."""
    from pipelines.fingerprint import git_commit, machine

    print(json.dumps(cells[-1]), flush=True)
    content = {
        "measured": datetime.now(UTC).date().isoformat(),
        "commit": git_commit(),
        "machine": machine(),
        "counts": dict(Counter(cell["outcome"] for cell in cells)),
        "num_wrong": sum(bool(cell["wrong"]) for cell in cells),
        "cells": cells,
    }
    replace_file(path, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
