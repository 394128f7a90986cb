"""A first look at a table that nobody described: how it is written, and what each column holds.

Nothing is guessed in silence: what was seen is said, and where two answers are possible `Unclear` asks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.dialect import DELIMITERS, decimal_of, delimiter_of, encodings_of
from pipelines.data.instants import CLOCK, Order, read, readings, unread
from pipelines.data.sources import FILE, scan_csv
from pipelines.data.spec import STEP_SECONDS, Source, Task
from validation.errors import InputError
from validation.record import Record

if TYPE_CHECKING:
    import polars as pl

_TIME_WORDS = (
    "time",
    "date",
    "stamp",
    "epoch",
    "日時",
    "時刻",
    "日付",
    "時間",
    "zeit",
    "datum",
    "heure",
    "fecha",
)
_TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".tab", ".dat")
_MOST_ROWS = 2_000_000  # looked at; of a longer table the first ones
_MOST_BYTES = 1 << 26  # of a text file, for its encoding
_MARKERS = 3  # so many different texts among numbers stand for "no value"; more are a column of texts
_MOSTLY = 0.9
_NOTHING = ["na", "n/a", "nan", "null", "none", "nil", "-", "--", "?", "欠測", "なし", "k.a."]
"""Texts that stand for no value however often they stand there; others only where they are rare."""


class Answers(Record):
    """What the person said instead of leaving it to what the table shows."""

    encoding: str | None = None
    dates: Order | None = None
    time: str | None = None
    step: str | None = None
    entity: str | None = None
    sort: bool | None = None
    task: Task | None = None
    target: tuple[str, ...] = ()
    lookback: int | None = None
    horizon: int | None = None


class Unclear(InputError):
    """One question, which `--about VALUE` answers; the `choices` may be open (())."""

    def __init__(self, place: Path, about: str, question: str, choices: Sequence[str] = ()) -> None:
        among = f" ({', '.join(choices)})" if choices else ""
        super().__init__(f"{place}: {question}{among} Answer with --{about}")
        self.place, self.about, self.question, self.choices = place, about, question, tuple(choices)


@dataclass
class Look:
    """A table as it was seen: columns typed number, text or instant."""

    place: Path
    source: dict[str, Any]
    """What the dataset file has to say of the source, its path apart."""
    table: "pl.DataFrame"
    """Numbers float64, texts String, instants datetime[us]; FILE names each row's file."""
    time: str | None
    num_files: int
    said: list[str] = field(default_factory=list)
    """What was seen, in sentences."""


def look_at(place: Path, answers: Answers) -> Look:
    """Read a text or Parquet file, or a folder of one kind. Raises Unclear, or InputError for no table."""
    files = _files(place)
    if files[0].suffix == ".parquet":
        return _typed_instants(_parquet(place, files), answers)
    return _typed_instants(_text(place, files, answers), answers)


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(
            f"{place}: no such file or folder; name a CSV, TSV or Parquet file, or a folder of them"
        )
    for ending in (".parquet", ".csv"):
        if found := sorted(place.glob(f"*{ending}")):
            return found
    raise InputError(f"{place}: holds no .parquet and no .csv file; name the file itself")


def _parquet(place: Path, files: list[Path]) -> Look:
    import polars as pl
    import polars.selectors as cs

    try:
        table = pl.scan_parquet(files, include_file_paths=FILE, glob=False).head(_MOST_ROWS).collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{place}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    table = table.with_columns(
        cs.numeric().cast(pl.Float64), cs.boolean().cast(pl.Float64), cs.categorical().cast(pl.String)
    )
    said = [f"Parquet, {_amount(table, files)}"]
    return Look(place, {"kind": "parquet"}, table, None, len(files), said)


# Text ---------------------------------------------------------------------------------------------


def _text(place: Path, files: list[Path], answers: Answers) -> Look:
    """A table of texts becomes one of numbers and texts; the dialect is that of the first file."""
    encoding, lines = _decoded(files[0], answers)
    delimiter, problem = delimiter_of(lines)
    if problem:
        raise InputError(f"{files[0]}: {problem}")
    source: dict[str, Any] = {"kind": "csv", "encoding": encoding, "delimiter": delimiter}
    raw = _raw(place, files, Source(path=str(place), **source))
    texts = [name for name in raw.columns if name != FILE]
    decimal, problem = decimal_of([_some(raw[name]) for name in texts])
    if problem:
        raise InputError(f"{place}: {problem}")
    numbers, missing = _numbers(raw, texts, decimal)
    source |= {"decimal": decimal, "missing": tuple(missing)}
    table = raw.with_columns(numbers.values())
    said = [f"text in {encoding}, parted by {DELIMITERS[delimiter]}, {_amount(table, files)}"]
    said += ["decimal comma"] if decimal == "," else []
    said += [f"{_listed(missing)} stands for no value"] if missing else []
    defaults = {"encoding": "utf-8", "delimiter": ",", "decimal": ".", "missing": ()}
    stated = {name: value for name, value in source.items() if value != defaults.get(name)}
    return Look(place, stated, table, None, len(files), said)


def _decoded(path: Path, answers: Answers) -> tuple[str, list[str]]:
    content = path.open("rb").read(_MOST_BYTES)
    known = [answers.encoding] if answers.encoding else list(encodings_of(content))
    if not known or path.suffix not in _TEXT_ENDINGS:
        raise InputError(f"{path}: no table in it; name a CSV, TSV or Parquet file, or a folder of them")
    if len(known) > 1:
        raise Unclear(
            path, "encoding", "its letters make sense in several encodings: which is it in?", tuple(known)
        )
    try:
        text = content.decode(known[0], errors="strict" if len(content) < _MOST_BYTES else "ignore")
    except UnicodeError as error:
        raise InputError(f"{path}: not in {known[0]}: {error}; name another --encoding") from None
    except LookupError:
        raise InputError(f"--encoding {known[0]}: Python knows none of that name; such as cp932") from None
    return "utf-8" if known[0] == "utf-8-sig" else known[0], text.splitlines()


def _raw(place: Path, files: list[Path], source: Source) -> "pl.DataFrame":
    """Every column as the texts that stand there."""
    import polars as pl

    try:
        return scan_csv(source, files, infer=False).head(_MOST_ROWS).collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{place}: cannot be read: {str(error).splitlines()[0]}") from None


def _numbers(
    raw: "pl.DataFrame", names: Iterable[str], decimal: str
) -> "tuple[dict[str, pl.Series], list[str]]":
    """Columns of numbers, and the few texts among them that stand for no value."""
    numbers, markers = dict[str, Any](), set[str]()
    for name in names:
        texts = raw[name].str.strip_chars()
        values = _as_numbers(texts, decimal)
        others = texts.filter(values.is_null() & texts.is_not_null())
        strange = others.filter(~others.str.to_lowercase().is_in(_NOTHING))
        share = 1 - len(strange) / max(1, texts.count())
        if share < _MOSTLY or others.n_unique() > _MARKERS or not values.count():
            continue
        numbers[name] = values.alias(name)
        markers |= set(others)
    return numbers, sorted(markers)


def _as_numbers(texts: "pl.Series", decimal: str) -> "pl.Series":
    import polars as pl

    pointed = texts.str.replace(",", ".", literal=True) if decimal == "," else texts
    wrong = texts.str.contains(".", literal=True) if decimal == "," else texts.str.contains(",", literal=True)
    values = pointed.cast(pl.Float64, strict=False)
    keep = (~wrong).fill_null(False) & values.is_finite().fill_null(False)
    return pl.DataFrame({"v": values, "k": keep}).select(pl.when("k").then("v"))["v"]


# Instants -----------------------------------------------------------------------------------------


def _typed_instants(look: Look, answers: Answers) -> Look:
    """Choose the time column, and how it is read."""
    import polars as pl

    name, columns = _time_column(look, answers), ()
    if name is None:
        return look
    column = look.table[name] if name in look.table.columns else None
    if column is None:
        columns = tuple(name.split(" + "))
        name, column = " ".join(columns), _joined(look.table, columns)
    look.time = name
    if column.dtype == pl.Datetime or column.dtype == pl.Date:
        zone = " in UTC" if getattr(column.dtype, "time_zone", None) else ""
        typed = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if zone else column
        look.table = look.table.with_columns(typed.cast(pl.Datetime("us")).alias(name))
        look.said.append(f"time: column {name!r}{zone}")
        return look
    texts = _as_texts(column)
    formats = _formats(look, name, texts, answers)
    look.table = look.table.with_columns(read(texts, formats).alias(name)).drop(columns)
    if formats != ("%Y-%m-%d %H:%M:%S",) or columns:
        look.source["time_formats"] = formats
    if columns:
        look.source["time_columns"] = columns
    look.said.append(f"time: {' and '.join(columns) or repr(name)}, written {' or '.join(formats)}")
    return look


def _time_column(look: Look, answers: Answers) -> str | None:
    """A column's name, or two joined by " + " that hold a date and a time of day."""
    if answers.time:
        parts = answers.time.split(" + ")
        for name in parts:
            if name not in look.table.columns:
                raise InputError(f"--time {name}: {look.place} has no such column")
        return answers.time
    found = list(_candidates(look))
    if len(found) > 1:
        named = [name for name in found if _is_named_like_time(name)]
        found = named if len(named) == 1 else found
    if len(found) > 1:
        raise Unclear(look.place, "time", "which column is a row's instant?", found)
    if not found and not answers.step:
        raise Unclear(look.place, "step", _no_time(look), ())
    return found[0] if found else None


def _candidates(look: Look) -> Iterator[str]:
    import polars as pl

    clocks = [
        name
        for name, dtype in look.table.schema.items()
        if dtype == pl.String and look.table[name].str.contains(f"^{CLOCK}$").fill_null(True).all()
    ]
    for name, dtype in look.table.schema.items():
        if dtype.is_temporal() and dtype not in (pl.Time, pl.Duration):
            yield name
        elif name != FILE and name not in clocks and _reads_as_instant(look.table[name]):
            is_day = look.table[name].n_unique() < len(look.table) / 2
            yield f"{name} + {clocks[0]}" if clocks and is_day else name


def _reads_as_instant(column: "pl.Series") -> bool:
    may_be_digits = _is_named_like_time(column.name)
    if column.dtype.is_numeric() and not may_be_digits:
        return False
    return bool(readings(_as_texts(column), may_be_digits))


def _formats(look: Look, name: str, texts: "pl.Series", answers: Answers) -> tuple[str, ...]:
    """The one reading of the column, by the order of its instants where dates do not tell their parts."""
    found = readings(texts, True, answers.dates)
    if not found:
        share, first = unread(texts, True)
        raise InputError(
            f"{look.place}: column {name!r}: {share:.1%} of its values are no instant, such as {first!r}; "
            "mend or remove those rows, or name another --time"
        )
    if len(found) > 1:
        ordered: list[Order] = [each for each, formats in found.items() if read(texts, formats).is_sorted()]
        if len(ordered) != 1:
            example = str(texts.drop_nulls()[0])
            question = f"in column {name!r}, what does {example!r} begin with?"
            raise Unclear(look.place, "dates", question, tuple(found))
        look.said.append(f"dates begin with the {ordered[0]}: only so are the rows in order of time")
        return found[ordered[0]]
    return next(iter(found.values()))


def _no_time(look: Look) -> str:
    nearly = [
        (name, *unread(look.table[name], False))
        for name, dtype in look.table.schema.items()
        if str(dtype) == "String" and name != FILE
    ]
    close = next((each for each in nearly if each[1] < 1 - _MOSTLY), None)
    if close:
        return (
            f"no column holds instants; {close[0]!r} nearly does, but for {close[2]!r}: mend that; or how "
            "far apart in time are two rows, such as 1min?"
        )
    units = "/".join(STEP_SECONDS)
    return (
        f"no column holds instants: how far apart in time are two rows (a number and {units}, such as 1min)?"
    )


def _is_named_like_time(name: str) -> bool:
    return any(word in name.lower() for word in _TIME_WORDS) or name.lower() in ("ts", "t", "at")


def _as_texts(column: "pl.Series") -> "pl.Series":
    """Whole numbers without their decimal point."""
    import polars as pl

    return column.cast(pl.Int64, strict=False).cast(pl.String) if column.dtype.is_numeric() else column


def _joined(table: "pl.DataFrame", columns: Sequence[str]) -> "pl.Series":
    import polars as pl

    return table.select(pl.concat_str([_as_texts(table[name]) for name in columns], separator=" "))[
        columns[0]
    ]


def _some(column: "pl.Series") -> list[str]:
    return column.drop_nulls().head(1000).to_list()


def _amount(table: "pl.DataFrame", files: list[Path]) -> str:
    names = len(table.columns) - 1
    many = f" in {len(files)} files" if len(files) > 1 else ""
    most = " (no more were looked at)" if len(table) == _MOST_ROWS else ""
    return f"{len(table):,} rows{many}{most}, {names} columns"


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts))
