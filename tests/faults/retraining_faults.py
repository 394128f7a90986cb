"""What a retraining survives: `python -m tests.faults.retraining_faults`.

Real servers, a real PostgreSQL, real kills, a full disk, a read-only home, a clock that jumps, a network that
hangs, a second scheduler. In a row of the matrix one retraining meets one fault at each step in turn, so
that its last steps have all earlier faults behind them. After each it has to go on by itself, or to be marked
as failed with its reason and go on when it is asked for again. At the end of a row nothing may be decided
twice or lost, no slot be taken, no lock held, no process left. Writes faults.json and faults.md, row by row.
"""

import argparse
import json
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from pipelines.files import replace_file
from tests import postgres
from tests.faults import harm
from tests.faults.harm import Harm, Site, killed, lasting
from tests.faults.ordeal import ASKED_AGAIN, BY_ITSELF, STEPS, Ordeal
from tests.operated import operation, write_operated
from tests.tiny_rollout import ROOT, TURNS, dankai, pump_table, write_policy

RESULTS = ROOT / "pipelines" / "benchmarks" / "results" / "faults.json"
NOT_KNOWN = "did not go on"


@dataclass(frozen=True)
class Row:
    """What strikes at which step, and what the operation stands on."""

    harms: dict[str, Harm]
    on_postgres: bool = False
    over_network: bool = False
    two_schedulers: bool = False
    small_disk: bool = False
    own_clock: bool = False


def at(steps: str, strikes: Harm) -> dict[str, Harm]:
    return dict.fromkeys(steps.split(), strikes)


EVERY, WRITING = " ".join(STEPS), "training registering deciding"
CLOCKS = dict(zip(STEPS, map(harm.clock_set, (26, -2, 26, -2, 26, -2, 0)), strict=True))  # hours off
ROWS = {
    "worker": Row(at(EVERY, killed("prefect worker start"))),
    "retraining": Row(at(EVERY, killed("prefect.engine"))),
    "Prefect server": Row(at(EVERY, killed("prefect server start"))),
    "MLflow server": Row(at(EVERY, killed("mlflow.server.fastapi_app"))),
    "everything, stopped": Row(at(EVERY, harm.everything_stopped)),
    "everything, killed": Row(at(EVERY, harm.everything_killed)),
    "disk full, 20 s": Row(at(WRITING, lasting(harm.disk_full, 20)), small_disk=True),
    "home read-only, 20 s": Row(at(WRITING, lasting(harm.read_only, 20))),
    "network hangs, 30 s": Row(at(WRITING, lasting(harm.network_stalled, 30)), over_network=True),
    "network hangs, 5 min": Row(at("registering", lasting(harm.network_stalled, 300)), over_network=True),
    "clock jumps": Row(CLOCKS, own_clock=True),
    "database": Row(at(EVERY, harm.database_killed), on_postgres=True),
    "one of two schedulers": Row(
        at("training deciding", killed("prefect server start")), on_postgres=True, two_schedulers=True
    ),
}


@contextmanager
def home_with_live_model(folder: Path, database: str) -> Iterator[Callable[[], None]]:
    """The operated pump, its dense model live; the answer puts its files back to that state."""
    folder.mkdir(parents=True)
    dataset, _, deployments = write_operated(folder)
    content = yaml.safe_load(deployments.read_text())
    for each in content["deployments"]:
        if each["name"] == "on-drift":
            each["entrypoint"] = "tests/faults/gated.py:retrain"
        if each["name"] in ("flights-daily", "flights-weekly"):  # nor may the hour start another retraining
            del each["schedules"]
    deployments.write_text(yaml.safe_dump(content))
    table = pump_table().filter(pl.col("at") >= TURNS)
    table.write_csv(folder / "incoming" / "2024-05.csv")
    policy = write_policy(folder, latency_p50_ratio=0.0)  # it need not climb for a retraining
    command = ("rollout", "run", dataset, "--policy", policy, "--bootstrap", "in use", "--quiet")
    monitor = ("monitor", dataset, folder / "incoming" / "2024-05.csv", "--policy", policy)
    with operation(folder, DANKAI_DATABASE_URL=database) as running:
        quietly = {**running.environ, "PREFECT_API_URL": ""}  # the drift's event is for each row to send
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


def run_row(folder: Path, name: str, steps: list[str], database: str) -> Iterator[dict[str, Any]]:
    """Its cells; a step that was not reached has one too, and the last says what is wrong at the end."""
    row = ROWS[name]
    cells: list[dict[str, Any]] = []
    with ExitStack() as stack:
        site = Site(folder, {"DANKAI_DATABASE_URL": database}, row.over_network, row.two_schedulers)
        if row.small_disk:
            stack.enter_context(harm.on_small_disk(site.home))
        stack.callback(site.kill)
        if row.own_clock:
            site.environ |= harm.clock_environ(folder)
        ordeal = Ordeal(site, {step: strikes for step, strikes in row.harms.items() if step in steps})
        try:
            for cell in ordeal.play():
                cells.append({"fault": name, **cell})
                print(json.dumps(cells[-1]), flush=True)
        except Exception as error:  # the matrix says so and goes on
            traceback.print_exc()
            ordeal.wrong.append(f"{type(error).__name__}: {str(error)[:300]}")
    for step in list(ordeal.harms)[len(cells) :]:
        cells.append({"fault": name, "step": step, "outcome": NOT_KNOWN, "why": "", "seconds": 0})
    yield from cells[:-1]
    yield {**cells[-1], "wrong": ordeal.wrong}


def rows_of(names: dict[str, list[str]], folder: Path) -> Iterator[dict[str, Any]]:
    """Rows on files start from the same state of them; each on PostgreSQL has a database of its own."""
    if on_files := [name for name in names if not ROWS[name].on_postgres]:
        with home_with_live_model(folder / "files", "") as back:
            for name in on_files:
                back()
                yield from run_row(folder / "files", name, names[name], "")
    if on_postgres := [name for name in names if ROWS[name].on_postgres]:
        with postgres.server() as address:
            for number, name in enumerate(on_postgres):
                database = postgres.new_database(address)
                with home_with_live_model(folder / f"postgres-{number}", database):
                    yield from run_row(folder / f"postgres-{number}", name, names[name], database)


def main() -> None:
    """Every cell, or those whose FAULT/STEP holds one of the words: then the others' results stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of FAULT/STEP")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    names = {
        name: steps
        for name, row in ROWS.items()
        if (steps := [step for step in row.harms if any(word in f"{name}/{step}" for word in chosen.only)])
    }
    kept = (
        json.loads(chosen.output.read_text())["cells"] if chosen.output.exists() and any(chosen.only) else []
    )
    cells = {(cell["fault"], cell["step"]): cell for cell in kept}
    with tempfile.TemporaryDirectory(prefix="dankai-faults-", ignore_cleanup_errors=True) as folder:
        for cell in rows_of(names, Path(folder)):
            cells[cell["fault"], cell["step"]] = cell
            report(chosen.output, list(cells.values()))


def report(path: Path, cells: list[dict[str, Any]]) -> None:
    """The matrix so far, with counts."""
    from pipelines.fingerprint import git_commit, machine

    content = {
        "measured": datetime.now(UTC).date().isoformat(),
        "commit": git_commit(),
        "machine": machine(),
        "counts": dict(Counter(cell["outcome"] for cell in cells)),
        "num_wrong": sum(bool(cell.get("wrong")) for cell in cells),
        "cells": cells,
    }
    replace_file(path, json.dumps(content, indent=1).encode() + b"\n")
    replace_file(path.with_suffix(".md"), table_of(cells).encode())


def table_of(cells: list[dict[str, Any]]) -> str:
    """Markdown: faults down, steps across, the seconds from the fault to the next step in each cell."""
    marks = {BY_ITSELF: "", ASKED_AGAIN: ", asked", NOT_KNOWN: "-"}
    lines = [f"| fault | {' | '.join(STEPS)} | at the end |", f"|{'---|' * (len(STEPS) + 2)}"]
    for name in dict.fromkeys(cell["fault"] for cell in cells):
        row = {cell["step"]: cell for cell in cells if cell["fault"] == name}
        shown = [
            f"{row[step]['seconds']} s{marks[row[step]['outcome']]}" if step in row else "" for step in STEPS
        ]
        wrong = [each for cell in row.values() for each in cell.get("wrong", [])]
        lines.append(f"| {name} | {' | '.join(shown)} | {'; '.join(wrong) or 'as it has to be'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
