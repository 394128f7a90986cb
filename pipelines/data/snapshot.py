"""A snapshot: the canonical table, frozen in one Parquet file that is named after what went into it.

A table of any size: it is written, looked over and hashed without ever being held whole.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.sources import read_source, source_files
from pipelines.data.spec import DatasetSpec
from pipelines.data.stream import WHOLE_ROWS, content_hash
from pipelines.files import replace_file, sha256_of, sync_folder
from validation.record import Record

if TYPE_CHECKING:
    import polars as pl

_ROW_GROUP = 1 << 17  # rows that have to be read to read one


class Snapshot(Record):
    """What a job was run on. `content_hash` (stream.content_hash) is the table's at `uri`, not the file's:
    the same table, written again, may be another file."""

    name: str
    uri: str
    content_hash: str
    num_rows: int
    num_entities: int
    start: datetime
    """Time of the earliest row."""
    end: datetime
    """Time of the latest row."""

    def artifact_paths(self) -> tuple[str, ...]:
        """Files this record stands for."""
        return (self.uri,)


class _Taken(Record):
    """A snapshot and the file that was written then."""

    snapshot: Snapshot
    file_sha256: str


def take_snapshot(spec: DatasetSpec, folder: Path) -> Snapshot:
    """Write the canonical table below `folder`, or return the snapshot of the very same inputs.

    Raises InputError, with nothing written, for a source that is absent, empty or lacks a column.
    """
    path = snapshot_path(spec, folder)
    return _taken(path) or _recorded(spec, path, _write_table(spec, read_source(spec), path))


def freeze(spec: DatasetSpec, table: "Callable[[], pl.DataFrame]", path: Path) -> Snapshot:
    """A canonical table that did not come from the source alone, kept at `path`: its name says what of."""
    return _taken(path) or _recorded(spec, path, _write_table(spec, table().lazy(), path))


def _taken(path: Path) -> Snapshot | None:
    """The snapshot at `path`, if it is whole."""
    record = path.with_suffix(".json")
    if not (path.exists() and record.exists()):
        return None
    taken = _Taken.model_validate_json(record.read_bytes())
    return (
        taken.snapshot.model_copy(update={"uri": str(path)}) if taken.file_sha256 == sha256_of(path) else None
    )


def kept_snapshots(folder: Path) -> list[Snapshot]:
    """Every snapshot below `folder`, whole or not."""
    records = sorted(folder.glob("*.json"))
    return [_Taken.model_validate_json(record.read_bytes()).snapshot for record in records]


def _recorded(spec: DatasetSpec, path: Path, facts: dict[str, Any]) -> Snapshot:
    snapshot = Snapshot(name=spec.name, uri=str(path), content_hash=content_hash(path), **facts)
    taken = _Taken(snapshot=snapshot, file_sha256=sha256_of(path))
    replace_file(path.with_suffix(".json"), taken.model_dump_json(indent=1).encode() + b"\n")
    return snapshot


def snapshot_path(spec: DatasetSpec, folder: Path) -> Path:
    """Where the snapshot of a dataset's present inputs lies, or would lie."""
    return folder / f"{spec.name}-{input_hash(spec)[:16]}.parquet"


def read_snapshot(snapshot: Snapshot) -> "pl.DataFrame":
    """The canonical table, whole; `stream.chunks` gives it in parts."""
    import polars as pl

    return pl.read_parquet(snapshot.uri)


def input_hash(spec: DatasetSpec) -> str:
    """SHA-256 (hex) of everything the canonical table depends on: source files, column choice, this code."""
    read = spec.model_dump(
        mode="json",
        include={"name", "source", "time", "start", "step", "entity", "entity_from"},
    )
    digest = hashlib.sha256(repr((read, spec.columns())).encode())
    modules = ("flights.py", "sources.py", "snapshot.py", "stream.py")
    code = (Path(__file__).with_name(name) for name in modules)
    for path in (*source_files(spec), *code):
        digest.update(f"{path.name}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


def _write_table(spec: DatasetSpec, table: "pl.LazyFrame", path: Path) -> dict[str, Any]:
    """Stream the table into a temporary file, rename it when it is whole and sound, and say what it holds."""
    import polars as pl

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        _sink(table, spec, unfinished)
        facts = _facts(spec, unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise spec.refuse("source.path", f"cannot be read: {reason}: repair or remove that file") from None
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)
    return facts


def _sink(table: "pl.LazyFrame", spec: DatasetSpec, path: Path) -> None:
    """Write the rows, those of an entity together, entities in order, as many at a time as fit in memory."""
    import polars as pl

    groups = _entity_groups(table) if spec.entity else []  # else a file an entity, and the files in order
    if len(groups) < 2:
        table = table.sort("entity", maintain_order=True) if groups else table
        table.sink_parquet(path, row_group_size=_ROW_GROUP)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".sorting-") as folder:
        parts = [Path(folder) / f"{number:06}.parquet" for number in range(len(groups))]
        for part, names in zip(parts, groups, strict=True):
            rows = table.filter(pl.col("entity").is_in(names))
            rows = rows.sort("entity", maintain_order=True) if len(names) > 1 else rows
            rows.sink_parquet(part)
        pl.scan_parquet(parts, glob=False).sink_parquet(path, row_group_size=_ROW_GROUP)


def _entity_groups(table: "pl.LazyFrame") -> list[list[str]]:
    """Entities in order, as many together as WHOLE_ROWS rows allow; one that has more stands alone."""
    import polars as pl

    counts = table.group_by("entity").agg(rows=pl.len()).collect(engine="streaming").sort("entity")
    groups: list[list[str]] = []
    room = 0
    for name, rows in counts.iter_rows():
        if rows > room:
            groups.append([])
            room = WHOLE_ROWS
        groups[-1].append(name)
        room -= rows
    return groups


def _facts(spec: DatasetSpec, path: Path) -> dict[str, Any]:
    """Counts and time range of a written table. Raises InputError when it has no rows or no times."""
    import polars as pl

    time = pl.col("time")
    facts = {
        "num_rows": pl.len(),
        "num_entities": pl.col("entity").n_unique(),
        "start": time.min(),
        "end": time.max(),
    }
    asked = pl.scan_parquet(path).select(no_time=time.null_count(), **facts)
    found = asked.collect(engine="streaming").row(0, named=True)
    if found["num_rows"] == 0:
        raise spec.refuse("source", "the table has no rows: check the path")
    if found.pop("no_time"):
        other = ", or written in none of source.time_formats," if spec.source.time_formats else ""
        raise spec.refuse(
            "time", f"column {spec.time!r} is empty{other} in some rows: every row needs its instant"
        )
    return found
