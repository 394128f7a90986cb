"""`dankai init`: tables as people send them lead to a dataset file that trains, or to one clear question."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from flows.cli import dankai
from flows.commands import init as init_module
from pipelines.batches import read_rows
from pipelines.data.dialect import encodings_of
from pipelines.data.looking import Unclear
from pipelines.data.snapshot import read_snapshot, take_snapshot
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.training_plan import TrainingPlan
from validation.errors import InputError

HOURS = [datetime(2024, 1, 3) + timedelta(hours=hour) for hour in range(1200)]
RANDOM = np.random.default_rng(7)
VALUES = RANDOM.normal(20, 5, size=(2, len(HOURS))).round(2)
IS_FAULT = (RANDOM.random(len(HOURS)) < 0.2).astype(int)


def init(table: Path, *options: str, out: Path) -> DatasetSpec:
    """The dataset file that the command writes. Raises what it refuses with."""
    ended = CliRunner().invoke(dankai, ["init", str(table), "--out", str(out), *options])
    if ended.exception:
        raise ended.exception
    assert f"wrote {out}" in ended.output
    return load_spec(out)


def japanese_plant(folder: Path) -> Path:
    """Shift JIS, two machines in turn, two ways of writing a time, a word for no value."""
    lines = ["日時,号機,温度℃,圧力,異常"]
    for number, at in enumerate(HOURS[:600]):
        written = (
            f"{at.year}/{at.month}/{at.day} {at.hour}:{at:%M}"
            if number % 3
            else f"{at:%Y年%m月%d日} {at.hour}時{at:%M}分"
        )
        for machine in (0, 1):
            pressure = "欠測" if number == 40 else VALUES[machine, number]
            row = (written, f"{machine + 1}号機", VALUES[machine, number + 600], pressure, IS_FAULT[number])
            lines.append(",".join(map(str, row)))
    path = folder / "設備.csv"
    path.write_bytes("\r\n".join(lines).encode("cp932"))
    return path


def german_station(folder: Path) -> Path:
    """Latin-1, semicolons, decimal commas, date and clock apart, empty columns and lines at the end."""
    lines = ["Datum;Zeit;Außentemperatur °C;Kühlmittel;;"]
    for number, at in enumerate(HOURS):
        numbers = (str(value).replace(".", ",") for value in VALUES[:, number])
        lines.append(f"{at:%d/%m/%Y};{at:%H.%M.%S};{';'.join(numbers)};;")
    path = folder / "Messstation 7.csv"
    path.write_bytes("\n".join([*lines, ";;;;;", ";;;;;", ""]).encode("cp1252"))
    return path


def american_export(folder: Path) -> Path:
    """UTF-16 with tabs; the month comes first, and some rows came from another program."""
    lines = ["Timestamp\tFlow\tTripped"]
    for number, at in enumerate(HOURS):
        written = f"{at:%m/%d/%Y %I:%M %p}" if number % 5 else f"{at:%Y-%m-%dT%H:%M:%SZ}"
        lines.append(f"{written}\t{VALUES[0, number]}\t{IS_FAULT[number]}")
    path = folder / "export.tsv"
    path.write_bytes("\n".join(lines).encode("utf-16"))
    return path


MADE = (japanese_plant, german_station, american_export)


@pytest.mark.parametrize("make", MADE)
def test_a_table_that_nobody_prepared_trains(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Snapshot, windows and the first steps of a training, by the very file that was written."""
    from tests.tiny_rollout import train_tiny, windows_of

    spec = init(make(tmp_path), out=tmp_path / "made.yaml")
    plan = {"num_steps": 2, "steps_per_epoch": 1, "validation_windows": 2, "tokens_per_step": 512}
    tiny = spec.model_copy(update={"training": TrainingPlan.model_validate(plan)})
    checkpoint, curve = train_tiny(windows_of(tiny, tmp_path), "dense", tmp_path / "model")
    assert checkpoint.num_steps == 2
    assert np.isfinite([loss for _, loss in curve["train_loss"]]).all()


def rows(spec: DatasetSpec, folder: Path) -> Any:
    return read_snapshot(take_snapshot(spec, folder))


def test_shift_jis_with_two_ways_of_writing_a_time(tmp_path: Path) -> None:
    spec = init(japanese_plant(tmp_path), out=tmp_path / "plant.yaml")
    assert (spec.source.encoding, spec.time, spec.entity, spec.step) == ("cp932", "日時", "号機", "1h")
    assert set(spec.source.time_formats) == {"%Y/%m/%d %H:%M", "%Y年%m月%d日 %H時%M分"}
    assert (spec.task, spec.label, spec.target) == ("detect", "異常", ("温度℃",))
    assert (spec.source.missing, spec.nullable) == (("欠測",), ("圧力",))
    table = rows(spec, tmp_path)
    assert table["entity"].unique().sort().to_list() == ["1号機", "2号機"]
    assert table["time"][:600].to_list() == HOURS[:600]
    assert table["温度℃"][:600].to_list() == VALUES[0, 600:].tolist()
    assert table["圧力"].null_count() == 2


def test_semicolons_decimal_commas_and_a_clock_apart(tmp_path: Path) -> None:
    spec = init(german_station(tmp_path), out=tmp_path / "station.yaml")
    source = spec.source
    assert (source.encoding, source.delimiter, source.decimal) == ("cp1252", ";", ",")
    assert source.time_columns == ("Datum", "Zeit")
    assert (spec.name, spec.task, spec.step) == ("messstation_7", "forecast", "1h")
    table = rows(spec, tmp_path)
    assert table["time"].to_list() == HOURS
    assert table["Kühlmittel"].to_list() == VALUES[1].tolist()


def test_a_batch_is_read_as_the_source_is_and_one_in_parquet_by_its_types(tmp_path: Path) -> None:
    spec = init(german_station(tmp_path), out=tmp_path / "station.yaml")
    (tmp_path / "later.csv").write_bytes((tmp_path / "Messstation 7.csv").read_bytes())
    written = read_rows(tmp_path / "later.csv", spec, ())
    assert written["time"].to_list() == HOURS
    plain = spec.source.model_copy(update={"time_columns": ()})
    of_types = spec.model_copy(update={"source": plain, "time": "time"})
    written.write_parquet(tmp_path / "later.parquet")
    assert read_rows(tmp_path / "later.parquet", of_types, ()).equals(written)


def test_utf_16_with_tabs_and_the_month_first(tmp_path: Path) -> None:
    spec = init(american_export(tmp_path), out=tmp_path / "export.yaml")
    assert (spec.source.encoding, spec.source.delimiter) == ("utf-16", "\t")
    assert (spec.task, spec.target, spec.time) == ("event", ("Tripped",), "Timestamp")
    assert rows(spec, tmp_path)["time"].to_list() == HOURS


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(lines))
    return path


def by_the_hour(written: Callable[[int], str], count: int = 1200) -> list[str]:
    return [f"{written(number)},{VALUES[0, number % 1200]}" for number in range(count)]


QUESTIONS: dict[str, tuple[list[str], str]] = {
    "no instants": (["a,b", *by_the_hour(str)], "--step"),
    "either order of day and month": (
        ["at,x", *(f"0{1 + n % 9}/0{1 + n % 7}/2024,{n / 7}" for n in range(500))],
        "--dates",
    ),
    "two instants": (
        ["start_time,end_time,x", *(f"{at},{at},{n * n % 97}" for n, at in enumerate(HOURS))],
        "--time",
    ),
    "rows out of order": (["at,x", *by_the_hour(lambda n: str(HOURS[n ^ 1]))], "--sort"),
    "two groupings": (
        ["at,line,site,x", *(f"{HOURS[n // 2]},{n % 2 + 1},{n % 2 + 5},{n * n % 97}" for n in range(1200))],
        "--entity",
    ),
    "two labels": (
        ["at,x,label_a,label_b", *(f"{at},{n * n % 97},{n % 2},{n % 3 // 2}" for n, at in enumerate(HOURS))],
        "--target",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_unclear_is_asked_with_the_option_that_answers_it(name: str, tmp_path: Path) -> None:
    lines, option = QUESTIONS[name]
    with pytest.raises(Unclear) as refused:
        init(csv(tmp_path, *lines), out=tmp_path / "made.yaml")
    assert str(refused.value).endswith(f"Answer with {option}")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "made.yaml").exists()


REFUSALS: dict[str, tuple[list[str], str]] = {
    "a preamble": (["Logger 7", *["a;b;c", *(f"{n};{n};{n}" for n in range(500))]], "is line 2 the header"),
    "a torn line": (["at,x", *by_the_hour(lambda n: str(HOURS[n])), "2024"], "line 1202 has 1 fields"),
    "comma and point": (
        ["a;b", *(f"{n},5;{n}.5" for n in range(500))],
        "both a decimal comma (0,5) and a point",
    ),
    "too short": (["at,x", "2024-01-01,1"], "1 rows; windows to train on, to stop by and to judge take 400"),
    "nothing to predict": (
        ["at,x", *(f"{at},5" for at in HOURS)],
        "nothing in it to predict ('x': it never changes)",
    ),
    "many columns that are flat": (
        [f"at,{','.join(map('v{}'.format, range(47)))}", *(f"{at}{47 * ',5'}" for at in HOURS)],
        "nothing in it to predict ('v0', 'v1', 'v2', 'v3', 'v4' and 42 more: it never changes)",
    ),
    "many series that are flat": (
        ["at,valve,x", *(f"{HOURS[n // 9]},v{n % 9},{n % 9}" for n in range(1200))],
        "nothing in it to predict ('x': it never changes within a series)",
    ),
    "gaps in every column": (
        ["at,x", *(f"{at},{n * n % 97 if n % 3 else ''}" for n, at in enumerate(HOURS))],
        "fill them",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_table_to_learn_from_is_one_line(name: str, tmp_path: Path) -> None:
    lines, said = REFUSALS[name]
    with pytest.raises(InputError) as refused:
        init(csv(tmp_path, *lines), out=tmp_path / "made.yaml")
    assert said in str(refused.value)
    assert str(tmp_path / "table.csv") in str(refused.value)


def test_one_line_names_the_columns_that_are_flat_and_what_moves_is_predicted(tmp_path: Path) -> None:
    header = ",".join(["at", *map("v{}".format, range(47)), "flow"])
    table = csv(tmp_path, header, *(f"{at}{47 * ',5'},{n * n % 97}" for n, at in enumerate(HOURS)))
    out = tmp_path / "made.yaml"
    ended = CliRunner().invoke(dankai, ["init", str(table), "--out", str(out)])
    assert ended.exit_code == 0, ended.exception
    assert "'v0', 'v1', 'v2', 'v3', 'v4' and 42 more are left out: it never changes\n" in ended.output
    assert load_spec(out).numeric == ("flow",)


def test_on_a_terminal_it_asks_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_module, "_is_attended", lambda: True)
    lines, _ = QUESTIONS["rows out of order"]
    out = tmp_path / "made.yaml"
    ended = CliRunner().invoke(dankai, ["init", str(csv(tmp_path, *lines)), "--out", str(out)], input="yes\n")
    assert ended.exit_code == 0, ended.exception
    assert "sort each series by time as it is read? (yes, no): yes" in ended.output
    assert load_spec(out).source.sort
    assert rows(load_spec(out), tmp_path)["time"].to_list() == HOURS


def test_a_dataset_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "made.yaml"
    out.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        init(german_station(tmp_path), out=out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("日時,温度,圧力\n", "cp932"),
        ("設備,状態\nポンプ,運転\n", "euc_jp"),
        ("ﾎﾟﾝﾌﾟ,温度\n", "cp932"),
        ("Zeit;Außentemperatur;Kühlmittel °C;Läufer\n", "cp1252"),
        ("Température,débit,été\n", "cp1252"),
        ("日時,温度", "utf-16"),
        ("日時,温度", "utf-8-sig"),
        ("日時,温度", "iso2022_jp"),
        ("temp,flow", "utf-8"),
    ],
)
def test_encodings_are_told_apart(text: str, encoding: str) -> None:
    assert encodings_of(text.encode(encoding)) == (encoding,)


def test_a_file_that_is_not_in_the_stated_encoding_is_one_line(tmp_path: Path) -> None:
    spec = init(japanese_plant(tmp_path), out=tmp_path / "plant.yaml")
    wrong = spec.model_copy(update={"source": spec.source.model_copy(update={"encoding": "euc_jp"})})
    with pytest.raises(InputError, match=r"設備\.csv: not euc_jp .*; state its source\.encoding"):
        take_snapshot(wrong, tmp_path)


def test_what_a_dialect_cannot_be_is_refused_with_the_field(tmp_path: Path) -> None:
    spec = init(german_station(tmp_path), out=tmp_path / "station.yaml")
    text = (tmp_path / "station.yaml").read_text()
    for old, new, said in (
        ("encoding: cp1252", "encoding: klingon", "'klingon' is none that Python knows"),
        ("delimiter: ;", "delimiter: ','", "the comma cannot part both numbers and columns"),
        ("kind: csv", "kind: parquet", "only a csv file has one"),
    ):
        assert old in text
        (tmp_path / "wrong.yaml").write_text(text.replace(old, new))
        with pytest.raises(InputError, match=said):
            load_spec(tmp_path / "wrong.yaml")
    assert spec.source.decimal == ","


REAL = {
    "ett/ETTh1.csv": ((), "forecast"),
    "nab/nab_real.parquet": (("--sort", "--target", "window_label"), "detect"),
    "schonlau/schonlau.parquet": (("--step", "1s"), "event"),
    "server_machines": (("--step", "1min"), "detect"),
    "server_machines/machine-1-7.parquet": (("--step", "1min"), "detect"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_tables(name: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That rollouts start with them is shown by tests/benchmarks/init_real_data.py, in minutes."""
    monkeypatch.setattr(init_module, "_check", lambda *_: None)
    options, task = REAL[name]
    if options:
        with pytest.raises(Unclear):
            init(data_folder / name, out=tmp_path / "made.yaml")
    assert init(data_folder / name, *options, out=tmp_path / "made.yaml").task == task


@pytest.mark.parametrize(
    "name", ["schonlau/vocab.csv", "schonlau/SOURCE.md", "server_machines/machine-1-6.interpretation.txt"]
)
def test_real_files_that_are_no_table_of_measurements(name: str, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        init(data_folder / name, "--step", "1s", out=tmp_path / "made.yaml")
