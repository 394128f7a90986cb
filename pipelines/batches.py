"""Batches of new rows: what arrived when and what became of it; nothing that arrives is dropped in silence.

A batch is a file, or a folder of files, like the dataset's own source. It is kept, named by its content: in
`batches/` when its rows are believed and count as known from then on, in `quarantine/batches/` when they are
not. Either way a note beside it says why.
"""

import hashlib
import os
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clock import now
from pipelines.data.snapshot import Snapshot, read_snapshot
from pipelines.data.sources import read_source
from pipelines.data.spec import DatasetSpec, Source
from pipelines.files import replace_file, sha256_of
from pipelines.job import dataset_folder
from pipelines.settings import Settings
from validation.errors import InputError
from validation.record import Record

if TYPE_CHECKING:
    import polars as pl

KINDS = ("parquet", "csv", "tsv", "txt")


class Batch(Record):
    """What arrived. `content_hash` is the SHA-256 (hex) of its files; start and end are its rows' times."""

    dataset: str
    source: str
    content_hash: str
    received_at: str
    num_rows: int = 0
    start: datetime | None = None
    end: datetime | None = None
    fault: str = ""
    """Why its rows are not believed; "" where they are."""
    is_late: bool = False
    """It fills a gap before rows that were known already."""


def arrived(path: Path, spec: DatasetSpec) -> Batch:
    """The batch at `path`, unread. Raises InputError where there is none."""
    files = _files(path)
    if not files:
        raise InputError(f"{path}: no batch there: name a .parquet or .csv file, or a folder of them")
    digest = hashlib.sha256("".join(f"{file.name}\0{sha256_of(file)}\0" for file in files).encode())
    return Batch(dataset=spec.name, source=str(path), content_hash=digest.hexdigest(), received_at=now())


def read_batch(path: Path, spec: DatasetSpec, known: "pl.DataFrame") -> "pl.DataFrame":
    """Its rows as the canonical table; outcomes that are not known yet are null.

    Rows without a time column go on where those of their entity in `known` end. Raises InputError for files
    that cannot be read, and for a column that is absent or of another type.
    """
    rows = read_rows(path, spec, may_lack=outcome_columns(spec))
    return _continued(rows, known, spec) if spec.start is not None else rows


def read_rows(path: Path, spec: DatasetSpec, may_lack: Collection[str]) -> "pl.DataFrame":
    """The canonical table of the files at `path`. Raises InputError where it is not one."""
    import polars as pl

    files = _files(path)
    if not files:
        raise InputError(f"{path}: nothing there: name a .parquet or .csv file, or a folder of them")
    place = path if path.is_file() else path / f"*{files[0].suffix}"
    kind = "parquet" if files[0].suffix == ".parquet" else "csv"
    # Batches are written as the dataset's own source is; Parquet has types, which need no dialect.
    change = {"kind": kind, "path": str(place.resolve())}
    source = spec.source.model_copy(update=change) if spec.source.path else Source.model_validate(change)
    try:
        named = spec.model_copy(update={"source": source, "file": str(path)})
        rows = read_source(named, may_lack=may_lack).collect()
        return rows.sort("entity", maintain_order=True) if spec.entity else rows
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: cannot be read: {str(error).strip().splitlines()[0]}") from None


def outcome_columns(spec: DatasetSpec) -> tuple[str, ...]:
    """Columns that may arrive later than the rows: an event's outcome, a label, and when it was known."""
    target = spec.target if spec.task == "event" else ()
    return tuple(name for name in (*target, spec.label, spec.target_known_at) if name)


def _continued(rows: "pl.DataFrame", known: "pl.DataFrame", spec: DatasetSpec) -> "pl.DataFrame":
    """Counted times, moved behind the last known row of the same entity."""
    import polars as pl

    assert spec.step_seconds is not None
    step = pl.duration(seconds=spec.step_seconds)
    ends = known.group_by("entity").agg(last=pl.col("time").max())
    moved = pl.col("time") + (pl.col("last") + step - pl.lit(spec.start)).fill_null(pl.duration(seconds=0))
    return rows.join(ends, on="entity", how="left", maintain_order="left").select(
        pl.col("entity"), moved.cast(pl.Datetime("us")).alias("time"), *rows.columns[2:]
    )


def fault_of_arrival(
    rows: "pl.DataFrame", known: list[tuple[datetime, datetime]], clock: datetime, is_regular: bool
) -> str:
    """Why rows cannot be taken as what happened next, or "". `known` are the spans of rows already known.

    In an event log, unlike a regular series, two spans may share the instant at which they meet.
    """
    if rows.is_empty():
        return "empty: it holds no rows"
    if rows["time"].null_count():
        return f"{rows['time'].null_count()} rows have no time"
    if disorder := _disorder(rows):
        return disorder
    start, end = _span(rows)
    if end > clock:
        return f"from the future: its last row is of {end}, and it is {clock:%Y-%m-%d %H:%M} UTC"
    for first, last in known:
        meets = start <= last and first <= end if is_regular else start < last and first < end
        if meets:
            return f"repeats rows that are known: it covers {start} to {end}, known is {first} to {last}"
    return ""


def _disorder(rows: "pl.DataFrame") -> str:
    import polars as pl

    back = rows.with_row_index("row").with_columns(step=pl.col("time").diff().over("entity"))
    wrong = back.filter(pl.col("step") < pl.duration(seconds=0))
    if wrong.is_empty():
        return ""
    return f"out of order: row {wrong['row'][0]} ({wrong['time'][0]}) is earlier than the row before"


def _span(rows: "pl.DataFrame") -> tuple[datetime, datetime]:
    return rows["time"].min(), rows["time"].max()  # type: ignore[return-value]


def clock() -> datetime:
    """This instant as tables write it: UTC without saying so."""
    return datetime.now(UTC).replace(tzinfo=None)


# What is kept -------------------------------------------------------------------------------------


def keep_batch(settings: Settings, batch: Batch, rows: "pl.DataFrame") -> None:
    """Believe a batch: its rows are known from now on."""
    path = batch_file(settings, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    rows.write_parquet(unfinished)
    os.replace(unfinished, path)
    _note(path, batch)


def set_aside(settings: Settings, batch: Batch) -> Path:
    """Copy what arrived, as it is, into quarantine, with a note that says why; where it lies."""
    folder = dataset_folder(settings, batch.dataset) / "quarantine" / "batches" / batch.content_hash[:16]
    for file in _files(Path(batch.source)):
        replace_file(folder / file.name, file.read_bytes())
    _note(folder / "batch", batch)
    return folder


def batches(settings: Settings, dataset: str) -> list[Batch]:
    """The batches that are believed, in order of their rows' time."""
    folder = dataset_folder(settings, dataset) / "batches"
    notes = [Batch.model_validate_json(path.read_bytes()) for path in folder.glob("*.json")]
    kept = [note for note in notes if batch_file(settings, note).exists()]
    return sorted(kept, key=lambda batch: (batch.start, batch.content_hash))


def rows_of(settings: Settings, batch: Batch) -> "pl.DataFrame":
    """The rows of a batch that is believed."""
    import polars as pl

    return pl.read_parquet(batch_file(settings, batch))


def known_spans(
    settings: Settings, snapshot: Snapshot, but: Batch | None = None
) -> list[tuple[datetime, datetime]]:
    """From when to when rows are known: the snapshot's, and every batch's since `but` one."""
    believed = _others(settings, snapshot, but)
    kept = [(each.start, each.end) for each in believed if each.start and each.end]
    return [(snapshot.start, snapshot.end), *kept]


def _others(settings: Settings, snapshot: Snapshot, but: Batch | None) -> list[Batch]:
    believed = batches(settings, snapshot.name)
    return [each for each in believed if but is None or each.content_hash != but.content_hash]


def known_rows(settings: Settings, snapshot: Snapshot, but: Batch | None = None) -> "pl.DataFrame":
    """The snapshot's rows and those of every batch since `but` one, by entity and in order of time."""
    import polars as pl

    later = [rows_of(settings, batch) for batch in _others(settings, snapshot, but)]
    table = read_snapshot(snapshot)
    return in_order(pl.concat([table, *(rows.select(table.columns).cast(table.schema) for rows in later)]))  # type: ignore[arg-type]


def in_order(table: "pl.DataFrame") -> "pl.DataFrame":
    """Entities stay in the order in which they first appear; rows of one instant keep theirs."""
    import polars as pl

    first = pl.int_range(pl.len()).min().over("entity")
    return table.with_columns(first=first).sort("first", "time", maintain_order=True).drop("first")


def _files(path: Path) -> list[Path]:
    """Files of one kind, in order of name."""
    if path.is_file():
        return [path] if path.suffix[1:] in KINDS else []
    return next((found for kind in KINDS if (found := sorted(path.glob(f"*.{kind}")))), [])


def batch_file(settings: Settings, batch: Batch) -> Path:
    """Where the rows of a batch lie that is believed."""
    return dataset_folder(settings, batch.dataset) / "batches" / f"{batch.content_hash[:16]}.parquet"


def _note(beside: Path, batch: Batch) -> None:
    replace_file(beside.with_suffix(".json"), batch.model_dump_json(indent=1).encode() + b"\n")
