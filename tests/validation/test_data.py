"""Broken tables are refused, bad rows are set aside, and the pages about it open without network."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from validation.data import REASON, ROW, Column, Contract, DataReport, validate
from validation.errors import InputError
from validation.gates import Outcome

CONTRACT = Contract(
    name="machines",
    source="machines.yaml",
    columns=(
        Column(name="entity", type="text"),
        Column(name="time", type="time"),
        Column(name="load", type="number", minimum=0, maximum=1),
        Column(name="heat", type="number", nullable=True),
        Column(name="mode", type="text", allowed=("on", "off")),
        Column(name="broke", type="number", allowed=(0, 1)),
    ),
    key=("entity", "time"),
    time="time",
    entity="entity",
    step_seconds=60,
    targets=("broke",),
    positive_label="broke",
)


def machines(num_rows: int = 50) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "entity": entity,
                "time": pd.date_range("2024-01-01", periods=num_rows, freq="min"),
                "load": generator.random(num_rows),
                "heat": generator.normal(size=num_rows),
                "mode": generator.choice(["on", "off"], num_rows),
                "broke": (np.arange(num_rows) % 10 == 0).astype(float),
            }
        )
        for entity in ("a", "b")
    ]
    return pd.concat(parts, ignore_index=True)


def check(
    frame: pd.DataFrame, folder: Path, contract: Contract = CONTRACT, share: float = 0.05
) -> DataReport:
    return validate(frame, contract, folder / "docs", folder / "bad", max_quarantined_share=share)


def test_a_clean_table_passes_and_says_how_much_was_checked(tmp_path: Path) -> None:
    report = check(machines(), tmp_path)
    assert (report.outcome, report.num_quarantined, report.failures) == (Outcome.PASS, 0, ())
    assert report.num_expectations >= 2 * len(CONTRACT.columns)
    assert report.num_rows == 100
    assert report.quarantine_uri is None
    assert DataReport.model_validate_json(report.model_dump_json()) == report


def test_rows_that_fail_are_set_aside_with_every_reason(tmp_path: Path) -> None:
    frame = machines()
    frame.loc[3, "load"] = 7.0
    frame.loc[3, "mode"] = "maybe"
    frame.loc[60, "heat"] = np.inf
    frame.loc[70, "heat"] = np.nan  # allowed: nullable
    frame.loc[99, "mode"] = None
    report = check(frame, tmp_path)
    assert report.quarantine_uri is not None
    quarantined = pd.read_parquet(report.quarantine_uri)
    assert quarantined[ROW].tolist() == [3, 60, 99]
    assert quarantined["load"].iloc[0] == 7.0
    assert "load: expected to be between" in quarantined[REASON].iloc[0]
    assert "mode: expected to be in set" in quarantined[REASON].iloc[0]
    assert quarantined[REASON].iloc[2] == "mode: expected to not be null"
    assert report.outcome is Outcome.PASS
    assert report.num_quarantined == 3
    assert {failure.column: failure.num_rows for failure in report.failures} == {
        "load": 1,
        "heat": 1,
        "mode": 1,
    }


def test_more_bad_rows_than_allowed_fail(tmp_path: Path) -> None:
    frame = machines()
    frame.loc[:9, "load"] = -1.0
    report = check(frame, tmp_path, share=0.05)
    assert report.outcome is Outcome.FAIL
    assert "10.00% of rows quarantined, 5.00% allowed" in report.reason


def test_a_rerun_on_mended_data_leaves_no_stale_quarantine(tmp_path: Path) -> None:
    frame = machines()
    frame.loc[3, "load"] = 7.0
    stale = check(frame, tmp_path).quarantine_uri
    assert stale is not None
    assert check(machines(), tmp_path).quarantine_uri is None
    assert not Path(stale).exists()


def test_data_docs_ask_nothing_of_the_network(tmp_path: Path) -> None:
    report = check(machines(), tmp_path)
    pages = list((tmp_path / "docs").rglob("*.html"))
    assert len(pages) == 3  # index, suite, result
    for page in pages:
        html = page.read_text()
        assert not re.search(r"<script|<(link|img|iframe)[^>]*https?://|@import|url\(['\"]?https?:", html), (
            page
        )
    links = re.findall(r'href="([^"#]+\.html)"', Path(report.docs_uri).read_text())
    assert any("validations" in link for link in links)
    assert all((tmp_path / "docs" / link).exists() for link in links)
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]  # nothing half-written beside


def _without(name: str) -> pd.DataFrame:
    return machines().drop(columns=name)


def _changed(row: int, name: str, value: object) -> pd.DataFrame:
    frame = machines()
    frame[name] = frame[name].astype(object) if isinstance(value, str) else frame[name]
    frame.loc[row, name] = value
    return frame


BROKEN = {
    "empty": (machines().iloc[:0], "no rows"),
    "unknown column": (
        machines().rename(columns={"load": "laod"}),
        "unknown column 'load': did you mean 'laod'?",
    ),
    "missing column": (_without("heat"), "unknown column 'heat'"),
    "text for a number": (_changed(4, "load", "n/a"), "'load' is not of type number: row 4 holds 'n/a'"),
    "duplicate key": (
        pd.concat([machines(), machines().iloc[[7]]], ignore_index=True),
        "row 100 repeats the key entity=a",
    ),
    "times out of order": (
        machines().iloc[[1, 0, *range(2, 100)]],
        "is earlier than the row before: sort by time",
    ),
    "a gap": (machines().drop(index=20), "comes 120 s after the one before, not 60 s"),
    "NaN target": (_changed(5, "broke", np.nan), "target 'broke' is nan in row 5"),
    "infinite target": (_changed(5, "broke", np.inf), "target 'broke' is inf in row 5"),
    "no positive label": (machines().assign(broke=0.0), "label 'broke' is never 1"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_table_gets_one_line_and_leaves_nothing(fault: str, tmp_path: Path) -> None:
    frame, expected = BROKEN[fault]
    with pytest.raises(InputError) as refusal:
        check(frame.reset_index(drop=True), tmp_path)
    message = str(refusal.value)
    assert message.startswith("machines.yaml: ")
    assert expected in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []
