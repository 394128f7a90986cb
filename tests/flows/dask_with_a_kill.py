"""Run by test_dask.py in a process of its own: two Dask workers, one killed halfway; the outcome as JSON."""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import fan_out
from pipelines.data.contract import contract_of
from pipelines.data.spec import load_spec
from pipelines.data.stream import chunks
from pipelines.scoring import score_model
from tests.tiny_rollout import pump_table, train_tiny, windows_of, write_dataset
from validation.data import validate_parts

NUM_PUMPS = 6


def pumps() -> pl.DataFrame:
    """Several pumps; two of them hold a load that is out of range."""
    tables = []
    for number in range(NUM_PUMPS):
        load = pl.when(pl.int_range(pl.len()) == 1000 + number).then(99.0).otherwise(pl.col("load"))
        table = pump_table().with_columns(pump=pl.lit(f"pump {number}"))
        tables.append(table.with_columns(load=load) if number % 3 == 0 else table)
    return pl.concat(tables)


def killed_halfway(cluster: Any, finished: Callable[[], int]) -> threading.Thread:
    """Kills a worker for good once something is finished."""

    def kill() -> None:
        while not finished():
            time.sleep(0.005)
        os.kill(cluster.workers[0].process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)  # what fails before must not wait for it
    thread.start()
    return thread


def as_in_a_rollout(*arguments: Any) -> Any:
    """Scored by a task of a flow, as flows.rollout does it."""
    from prefect import flow, task

    step: Any = task(name="score", persist_result=False)(fan_out.score_in_pieces)

    @flow(name="rollout", validate_parameters=False)
    def rollout() -> Any:
        return step(*arguments)

    return rollout()


def main(folder: Path) -> dict[str, Any]:
    from dask.distributed import LocalCluster

    from flows.dask import on_dask

    spec = load_spec(write_dataset(folder, table=pumps(), entity="pump"))
    windows = windows_of(spec, folder)
    checkpoint, _ = train_tiny(windows, "dense", folder / "model")
    fan_out.PIECE_WINDOWS, fan_out.PIECE_ROWS = 16, 1000
    alone = score_model(checkpoint, windows, "test", None, "dense", folder / "alone", lambda *_: None)
    contract, found = contract_of(spec), {"windows": alone.num_windows}
    frames = (rows.to_pandas() for rows in chunks(windows.snapshot.uri))
    whole = validate_parts(frames, contract, folder / "a/docs", folder / "a/aside", max_quarantined_share=0.1)
    workers: Any = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)  # pyright: ignore
    with workers as cluster:

        def spread(function: Any, pieces: Any) -> Any:
            found[f"{function.__name__}s"] = len(pieces)
            return on_dask(cluster.scheduler_address, function, pieces)

        killer = killed_halfway(cluster, lambda: len(list(folder.glob("scores/pieces/*.npz"))))
        scores = as_in_a_rollout(spread, checkpoint, windows, "test", None, "dense", folder / "scores")
        killer.join()
        killer = killed_halfway(cluster, lambda: len(list(folder.glob("b/pieces/aside/*/report.json"))))
        docs, aside = folder / "b/docs", folder / "b/aside"
        report = fan_out.validate_in_pieces(spread, windows.snapshot, contract, docs, aside, 0.1)
        killer.join()
    places = {"docs_uri": "", "quarantine_uri": ""}
    rows, alone_rows = (pl.read_parquet(each.quarantine_uri or "") for each in (report, whole))
    return {
        **found,
        "same_scores": scores.sha256 == alone.sha256,
        "differs": [
            f"{name}: {ours}, alone {theirs}"
            for (name, ours), (_, theirs) in zip(
                report.model_copy(update=places), whole.model_copy(update=places), strict=True
            )
            if ours != theirs
        ],
        "same_rows_aside": rows.equals(alone_rows) and len(rows) == 2,
        "docs": sorted(path.parent.name for path in docs.glob("*/index.html")),
        "left_over": [str(path) for path in folder.rglob("pieces/*") if path.is_file()],
    }


if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)
    print(json.dumps(main(Path(sys.argv[1]))))
