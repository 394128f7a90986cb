"""A dataset's own windows as requests: what callers would have sent, for a pilot that has no stored ones."""

import json
from collections.abc import Iterator

import numpy as np

from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import read_snapshot, take_snapshot
from pipelines.data.windows import WindowBatch, Windows, training_rows
from pipelines.job import Job
from pipelines.serving.requests import Request


def requests_of_part(job: Job, part: str) -> list[Request]:
    """One request per evaluation window of a part, in order of time, named after part and row."""
    snapshot = take_snapshot(job.spec, job.folder / "snapshots")
    table = read_snapshot(snapshot)
    preprocessing = fit_preprocessing(training_rows(table, job.spec), job.spec)
    return list(requests_of(Windows(snapshot, job.spec, preprocessing, table), part))


def requests_of(windows: Windows, part: str) -> Iterator[Request]:
    for cutoff in windows.cutoffs(part):
        batch = windows.batch(np.array([cutoff]), None)
        yield Request(f"{part}-{cutoff}", json.dumps({"inputs": _inputs(batch)}).encode())


def _inputs(batch: WindowBatch) -> dict[str, list]:
    """Rounded to what float32 can hold: a third of the digits that JSON would write."""
    return {
        "numeric": [[[float(f"{x:.7g}") for x in step] for step in batch.numeric[0].tolist()]],
        "known": batch.known.astype(int).tolist(),
        "categorical": batch.categorical.tolist(),
    }
