"""Any table in one canonical form: `entity`, `time`, then the columns that the dataset file names."""

import glob
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.flights import flights_table, package_files
from pipelines.data.spec import DatasetSpec, Kind, Source
from validation.errors import InputError, unknown_name

if TYPE_CHECKING:
    import polars as pl


FILE = "\0file"
"""Column with the path of a row's file; no table has one of that name."""


def source_files(spec: DatasetSpec) -> list[Path]:
    """The files a dataset is read from, in order of name. Raises InputError when there are none."""
    if spec.source.path is None:
        return package_files()
    place = source_place(spec)
    files = sorted(place.glob(f"*.{spec.source.kind}")) if place.is_dir() else _matching(place)
    if not files:
        fix = "check the path, or set DANKAI_DATA to the folder that holds it"
        raise spec.refuse("source.path", f"no {spec.source.kind} file at {place}: {fix}")
    return files


def source_place(spec: DatasetSpec) -> Path:
    """The source's path, variables filled in; a relative one starts at the dataset file's repository."""

    def fill(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        return str(Path(value).resolve()) if value else match[2] or ""

    text = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", fill, spec.source.path or "")
    return Path(os.path.normpath(_root(Path(spec.file).resolve().parent) / Path(text).expanduser()))


def read_source(spec: DatasetSpec, may_lack: Collection[str] = ()) -> "pl.LazyFrame":
    """The canonical table, lazily: `entity` text, `time` datetime[us], then `spec.columns()`.

    Rows keep their order, unless `source.sort` asks for that of time; bringing those of an entity together is
    the snapshot's work. Columns that it `may_lack` are null where it does. Raises InputError for an absent
    file, an unknown column or one of the wrong type.
    """
    import polars as pl

    table = flights_table() if spec.source.path is None else _scan(spec, source_files(spec))
    try:
        schema = table.collect_schema()
        is_empty = spec.source.path is not None and table.head(1).collect().is_empty()
    except pl.exceptions.PolarsError as error:
        raise spec.refuse("source.path", f"cannot be read as {spec.source.kind}: {_line(error)}") from None
    if is_empty:  # asked before the types: a CSV file without rows has none
        raise spec.refuse("source.path", f"no rows in {source_place(spec)}: check the path")
    lacking = {name for name in may_lack if name not in schema or _is_empty(table, name)}
    columns = [
        _unknown(name, kind) if name in lacking else _column(spec, schema, name, kind)
        for name, kind in spec.columns().items()
    ]
    canonical = table.select(_entity(spec, schema), _time(spec, schema), *columns)
    if spec.start is not None:
        canonical = canonical.with_columns(_counted_time(spec))
    return canonical.sort("entity", "time", maintain_order=True) if spec.source.sort else canonical


def _matching(place: Path) -> list[Path]:
    return [Path(found) for found in sorted(glob.glob(str(place), recursive=True)) if Path(found).is_file()]


def _root(folder: Path) -> Path:
    """The nearest folder that holds a pyproject.toml, else the dataset file's own."""
    return next((up for up in (folder, *folder.parents) if (up / "pyproject.toml").is_file()), folder)


def _scan(spec: DatasetSpec, files: list[Path]) -> "pl.LazyFrame":
    import polars as pl

    if spec.source.kind == "csv":
        table = scan_csv(spec.source, files, spec.time)
    else:
        table = pl.scan_parquet(files, include_file_paths=FILE, glob=False)
    if spec.source.time_columns:
        for name in spec.source.time_columns:
            _known(spec, table.collect_schema(), "source.time_columns", name)
        joined = pl.concat_str(
            [pl.col(name).cast(pl.String) for name in spec.source.time_columns], separator=" "
        )
        table = table.with_columns(joined.alias(spec.time or "time"))
    return table


def scan_csv(
    source: Source, files: list[Path], time: str | None = None, infer: bool = True
) -> "pl.LazyFrame":
    """CSV files in the dialect that `source` states, lines without a single value left out; FILE says which.

    Columns that `source` says how to read as instants stay text, and so do all where nothing is to `infer`.
    A file that is not UTF-8 is held in memory while it is read. Raises InputError where it is not what the
    encoding says.
    """
    import polars as pl

    as_text = {name: pl.String for name in source.time_columns or (time,) if name and source.time_formats}
    options: dict[str, Any] = {
        "separator": source.delimiter,
        "decimal_comma": source.decimal == ",",
        "null_values": list(source.missing) or None,
        "infer_schema_length": None if infer else 0,
        "try_parse_dates": infer,
        "schema_overrides": as_text or None,
    }
    if source.encoding in ("utf-8", "utf-8-sig"):
        table = pl.scan_csv(files, include_file_paths=FILE, glob=False, **options)
    else:
        parts = [pl.scan_csv(_as_utf8(path, source.encoding), **options) for path in files]
        named = [
            part.with_columns(pl.lit(str(path)).alias(FILE)) for part, path in zip(parts, files, strict=True)
        ]
        table = pl.concat(named, how="vertical_relaxed")
    return table.filter(~pl.all_horizontal(pl.exclude(FILE).is_null()))


def _as_utf8(path: Path, encoding: str) -> bytes:
    try:
        return path.read_bytes().decode(encoding).encode()
    except UnicodeError as error:
        said = (
            f"{path}: not {encoding} ({error.reason})"
            if isinstance(error, UnicodeDecodeError)
            else str(error)
        )
        raise InputError(f"{said}; state its source.encoding, such as utf-8 or cp932") from None


def _entity(spec: DatasetSpec, schema: "pl.Schema") -> "pl.Expr":
    import polars as pl

    if spec.entity_from:
        return pl.col(FILE).str.extract(r"([^/\\]+)\.\w+$").alias("entity")
    if spec.entity is None:
        return pl.lit(spec.name).alias("entity")
    _known(spec, schema, "entity", spec.entity)
    return pl.col(spec.entity).cast(pl.String).alias("entity")


def _time(spec: DatasetSpec, schema: "pl.Schema") -> "pl.Expr":
    import polars as pl

    if spec.time is None:
        return pl.lit(spec.start).cast(pl.Datetime("us")).alias("time")
    return _instant(spec, schema, "time", spec.time).alias("time")


def _counted_time(spec: DatasetSpec) -> "pl.Expr":
    """Start + row number x step, counted within each entity."""
    import polars as pl

    step = pl.duration(seconds=spec.step_seconds)
    return (pl.col("time") + pl.int_range(pl.len()).over("entity") * step).cast(pl.Datetime("us"))


def _column(spec: DatasetSpec, schema: "pl.Schema", name: str, kind: Kind) -> "pl.Expr":
    import polars as pl

    field = _field_of(spec, name)
    _known(spec, schema, field, name)
    if kind == "time":
        return _instant(spec, schema, field, name)
    if kind == "text":
        return pl.col(name).cast(pl.String)
    if not (schema[name].is_numeric() or schema[name] in (pl.Boolean, pl.Null)):
        fix = "clean the file, or list it under categorical" if kind == "number" else "make it 0 or 1"
        raise _wrong_type(spec, field, name, schema, "numbers", fix)
    return pl.col(name).cast(pl.Float64)


def _is_empty(table: "pl.LazyFrame", name: str) -> bool:
    """A column without a single value has no type in a CSV file."""
    import polars as pl

    return bool(table.select(pl.col(name).is_null().all()).collect().item())


def _unknown(name: str, kind: Kind) -> "pl.Expr":
    import polars as pl

    dtypes = {"time": pl.Datetime("us"), "text": pl.String}
    return pl.lit(None, dtype=dtypes.get(kind, pl.Float64)).alias(name)


def _instant(spec: DatasetSpec, schema: "pl.Schema", field: str, name: str) -> "pl.Expr":
    """The column as naive datetime[us], in UTC where it names a zone."""
    import polars as pl

    _known(spec, schema, field, name)
    dtype, column = schema[name], pl.col(name)
    if name == spec.time and spec.source.time_formats and not dtype.is_temporal():
        return written_instant(column.cast(pl.String), spec.source.time_formats)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    elif not (dtype.is_temporal() and dtype not in (pl.Time, pl.Duration)):
        raise _wrong_type(spec, field, name, schema, "dates or times", "write them like 2013-07-01 05:15:00")
    return column.cast(pl.Datetime("us"))


def written_instant(column: "pl.Expr", formats: Collection[str]) -> "pl.Expr":
    """Texts as naive datetime[us] (UTC where they name a zone), by the first format that fits; else null."""
    import polars as pl

    read = (column.str.strptime(pl.Datetime("us"), each, strict=False) for each in formats)
    return pl.coalesce([each.dt.replace_time_zone(None) for each in read])


def _known(spec: DatasetSpec, schema: "pl.Schema", field: str, name: str) -> None:
    if name not in schema:
        place = source_place(spec) if spec.source.path else spec.source.kind
        raise spec.refuse(field, f"{unknown_name('column', name, schema)} (columns of {place})")


def _wrong_type(
    spec: DatasetSpec, field: str, name: str, schema: "pl.Schema", wanted: str, fix: str
) -> InputError:
    return spec.refuse(field, f"column {name!r} holds {schema[name]}, not {wanted}: {fix}")


def _field_of(spec: DatasetSpec, name: str) -> str:
    """The key of the dataset file that names a column."""
    fields = ("numeric", "categorical", "target", "slices")
    listed = next((field for field in fields if name in getattr(spec, field)), None)
    if listed is None and spec.late and name == spec.late.known_at:
        return "late.known_at"
    return listed or ("label" if name == spec.label else "target_known_at")


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
