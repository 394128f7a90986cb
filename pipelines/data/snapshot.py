"""A snapshot: the canonical table, frozen in one Parquet file that is named after what went into it."""

import hashlib
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.sources import read_source, source_files
from pipelines.data.spec import DatasetSpec
from pipelines.files import replace_file, sync_folder
from validation.record import Record

if TYPE_CHECKING:
    import polars as pl


class Snapshot(Record):
    """What a job was run on. `content_hash` is the SHA-256 (hex) of the file at `uri`."""

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
    snapshot = Snapshot.model_validate_json(record.read_bytes())
    return snapshot.model_copy(update={"uri": str(path)}) if snapshot.content_hash == _sha256(path) else None


def kept_snapshots(folder: Path) -> list[Snapshot]:
    """Every snapshot below `folder`, whole or not."""
    return [Snapshot.model_validate_json(record.read_bytes()) for record in sorted(folder.glob("*.json"))]


def _recorded(spec: DatasetSpec, path: Path, facts: dict[str, Any]) -> Snapshot:
    snapshot = Snapshot(name=spec.name, uri=str(path), content_hash=_sha256(path), **facts)
    replace_file(path.with_suffix(".json"), snapshot.model_dump_json(indent=1).encode() + b"\n")
    return snapshot


def snapshot_path(spec: DatasetSpec, folder: Path) -> Path:
    """Where the snapshot of a dataset's present inputs lies, or would lie."""
    return folder / f"{spec.name}-{input_hash(spec)[:16]}.parquet"


def read_snapshot(snapshot: Snapshot) -> "pl.DataFrame":
    """The canonical table."""
    import polars as pl

    return pl.read_parquet(snapshot.uri)


def input_hash(spec: DatasetSpec) -> str:
    """SHA-256 (hex) of everything the canonical table depends on: source files, column choice, this code."""
    read = spec.model_dump(
        mode="json",
        include={"name", "source", "time", "start", "step", "entity", "entity_from"},
    )
    digest = hashlib.sha256(repr((read, spec.columns())).encode())
    code = (Path(__file__).with_name(name) for name in ("flights.py", "sources.py", "snapshot.py"))
    for path in (*source_files(spec), *code):
        digest.update(f"{path.name}\0{_sha256(path)}\0".encode())
    return digest.hexdigest()


def _write_table(spec: DatasetSpec, table: "pl.LazyFrame", path: Path) -> dict[str, Any]:
    """Stream the table into a temporary file, rename it when it is whole and sound, and say what it holds."""
    import polars as pl

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        table.sink_parquet(unfinished)
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
    found = pl.scan_parquet(path).select(no_time=time.null_count(), **facts).collect().row(0, named=True)
    if found["num_rows"] == 0:
        raise spec.refuse("source", "the table has no rows: check the path")
    if found.pop("no_time"):
        raise spec.refuse("time", f"column {spec.time!r} is empty in some rows: every row needs its instant")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
