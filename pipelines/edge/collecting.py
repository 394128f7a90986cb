"""What devices left in a store, as the server needs it: batches for the monitor, and what devices saw.

Device rows carry canonical names (`time`, `entity`); a batch carries the dataset's own. Each audited
stretch is one batch, since rows between stretches were never sent. A row that several files hold is taken
once.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.data.sources import read_source
from pipelines.data.spec import DatasetSpec
from pipelines.edge.journal import PERIOD, unseal
from pipelines.edge.metrics import SHIFTED
from pipelines.edge.stores import Store, read
from pipelines.files import replace_file
from validation.errors import InputError
from validation.record import Record

_MAX_FILE_BYTES = 256 << 20


class DeviceSums(Record):
    """What one device did, all its periods together."""

    device: str
    lines: int
    scored: int
    windows: int
    failed: int
    errors: dict[str, int]
    score_shift: float | None
    """Largest population stability index of a period's scores against the bundle's first ones there."""
    dropped_rows: int

    @property
    def has_shifted(self) -> bool:
        """The device saw its own scores move."""
        return self.score_shift is not None and self.score_shift > SHIFTED


class Collected(Record):
    """What was made of it."""

    batches: tuple[str, ...]
    """Files or folders that `dankai monitor` takes, oldest rows first."""
    num_rows: int
    damaged: tuple[str, ...]
    """Files that were not as a device wrote them, and were left out."""
    devices: tuple[DeviceSums, ...]


def collect(store: Store, spec: DatasetSpec, out: Path) -> Collected:
    """Write one batch per audited stretch below `out`. Raises StoreError or InputError."""
    names = store.names("devices/")
    damaged: list[str] = []
    stretches: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for name in names:
        *_, device, state, file = ["", "", *name.split("/")]
        if not file.startswith("rows-"):
            continue
        record = unseal(read(store, name, _MAX_FILE_BYTES) or b"")
        if record is None:
            damaged.append(name)
            continue
        stretches.setdefault((f"{device}-{state}", (record["n"] - 1) // PERIOD), []).extend(record["rows"])
    batches = [_batch(out, name, rows, spec) for name, rows in _joined(stretches)]
    written = sorted((batch for batch in batches if batch is not None), key=lambda batch: batch[0])
    return Collected(
        batches=tuple(str(path) for _, path, _ in written),
        num_rows=sum(number for *_, number in written),
        damaged=tuple(damaged),
        devices=tuple(_sums(store, names)),
    )


def device_rows(spec: DatasetSpec, last: int) -> str:
    """The newest rows of a dataset's source as a device would be given them, JSON lines in order of time."""
    names = (*spec.numeric, *spec.categorical, *(spec.target if spec.task == "event" else ()))
    table = read_source(spec).select("time", "entity", *names).collect()
    return table.sort("time", maintain_order=True).tail(last).write_ndjson()


def _joined(
    stretches: dict[tuple[str, int], list[dict[str, Any]]],
) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """Stretches of a device whose periods follow each other are one."""
    rows: list[dict[str, Any]] = []
    for (device, period), found in sorted(stretches.items()):
        rows += found
        if (device, period + 1) not in stretches:
            yield f"{device}-{period:06d}", rows
            rows = []


def _batch(
    out: Path, name: str, rows: list[dict[str, Any]], spec: DatasetSpec
) -> tuple[str, Path, int] | None:
    """First time, place and number of rows of one stretch; None where it holds none."""
    if not rows:
        return None
    table = pl.DataFrame(rows, infer_schema_length=None).drop("scores").unique(maintain_order=True)
    first, number = str(table["time"].min()), len(table)
    if spec.target and spec.task == "event" and spec.target[0] not in table.columns:
        table = table.with_columns(pl.lit(None, pl.Float64).alias(spec.target[0]))
    if spec.time is not None:
        table = table.rename({"time": spec.time}) if spec.time != "time" else table
    else:
        table = table.drop("time")  # the dataset counts its rows
    if spec.entity_from is None:
        table = table.drop("entity") if spec.entity is None else table.rename({"entity": spec.entity})
        return first, _write(out / f"{name}.csv", table), number
    for (entity,), part in table.group_by("entity", maintain_order=True):
        _write(out / name / f"{_file_name(str(entity))}.csv", part.drop("entity"))
    return first, out / name, number


def _write(path: Path, table: pl.DataFrame) -> Path:
    replace_file(path, table.write_csv().encode())
    return path


def _file_name(entity: str) -> str:
    if "/" in entity or entity.startswith(".") or not entity:
        raise InputError(f"entity {entity!r}: names no file; the dataset takes entities from file names")
    return entity


def _sums(store: Store, names: Sequence[str]) -> Iterable[DeviceSums]:
    devices = sorted({name.split("/")[1] for name in names})
    for device in devices:
        own = [name for name in names if name.startswith(f"devices/{device}/") and "/sums-" in name]
        periods = _outermost([_parsed(store, name) for name in own])
        report = _parsed(store, f"devices/{device}/report.json")
        errors: dict[str, int] = {}
        for period in periods:
            for kind, count in period["errors"].items():
                errors[kind] = errors.get(kind, 0) + count
        shifts = [period["score_shift"] for period in periods if period.get("score_shift") is not None]
        totals = {key: sum(each[key] for each in periods) for key in ("lines", "scored", "windows", "failed")}
        yield DeviceSums(
            device=device,
            **totals,
            errors=errors,
            score_shift=max(shifts, default=None),
            dropped_rows=report.get("dropped", {}).get("rows", 0),
        )


def _outermost(periods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without sums that are part of another's: added up by the device, or sent before they were whole."""
    whole = [period for period in periods if period]
    return [
        each
        for each in whole
        if not any(
            other is not each
            and other["first"] <= each["first"]
            and each["last"] <= other["last"]
            and (other["first"], other["last"]) != (each["first"], each["last"])
            for other in whole
        )
    ]


def _parsed(store: Store, name: str) -> dict[str, Any]:
    """A device's JSON; {} where it is none: what a device leaves is never trusted."""
    try:
        found = json.loads(read(store, name, _MAX_FILE_BYTES) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
