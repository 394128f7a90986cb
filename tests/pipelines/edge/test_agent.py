"""Rows in, answers out: what is scored when, what is refused and how, and what a device sees of itself."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import KEY, built_bundle

from pipelines.edge.agent import Agent, Loaded, Options, answers_of
from pipelines.edge.governor import Governor, Target, table_of
from pipelines.edge.intake import MAX_LINE_BYTES, read_lines
from pipelines.edge.journal import read_journal
from pipelines.edge.metrics import Limits, Scored, Watch, deciles, is_above, merged, summed
from pipelines.edge.runtime import EdgeModel
from pipelines.edge.series import SET_BACK_AFTER
from pipelines.edge.spool import Spool
from validation.errors import InputError

PUBLIC = KEY.public_key()
START = datetime(2024, 2, 28)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EdgeModel:
    return EdgeModel.load(Path(built_bundle(tmp_path_factory.mktemp("edge")).folder), PUBLIC)


def plant_rows(number: int, entity: str = "pump", first: int = 0) -> list[Row]:
    random = np.random.default_rng(first)
    return [
        {
            "time": (START + timedelta(minutes=place)).isoformat(),
            "entity": entity,
            "load": float(random.normal(2, 4)),
            "wind": float(random.normal()),
            "site": "north",
            "late": 0,
        }
        for place in range(first, first + number)
    ]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(
        b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    )
    return path


def answered(model: EdgeModel, state: Path, source: Path, **options: Any) -> tuple[list[Row], Agent]:
    agent = Agent(state, Loaded("1-test", model), source, Options(**options))
    found = [each for some in agent.take(read_lines(str(source), agent.positions, False)) for each in some]
    agent.close()
    return found, agent


# windows ------------------------------------------------------------------------------------------


def test_every_row_after_the_first_lookback_gets_the_score_of_its_window(
    model: EdgeModel, tmp_path: Path
) -> None:
    rows = plant_rows(100)
    found, agent = answered(model, tmp_path / "state", write(tmp_path / "rows.jsonl", rows))
    assert [each["line"] for each in found] == list(range(41, 97))  # lookback 40, horizon 8
    expected = np.concatenate([model.score(rows[start : start + 48]) for start in range(0, 49, 8)])
    np.testing.assert_allclose([each["scores"] for each in found], expected, atol=1e-6)
    counts = agent.counts
    assert (counts.lines, counts.scored, counts.context, counts.waiting) == (100, 56, 40, 4)
    assert found[0] == {"file": "rows.jsonl", "line": 41, "entity": "pump", "time": rows[40]["time"]} | {
        "scores": found[0]["scores"]
    }


def test_entities_have_windows_of_their_own_and_files_of_a_folder_follow_each_other(
    model: EdgeModel, tmp_path: Path
) -> None:
    alone, _ = answered(model, tmp_path / "alone", write(tmp_path / "a.jsonl", plant_rows(90)))
    (tmp_path / "in").mkdir()
    mixed = [row for pair in zip(plant_rows(90), plant_rows(90, "fan"), strict=True) for row in pair]
    write(tmp_path / "in" / "1.jsonl", mixed[:77])
    write(tmp_path / "in" / "2.jsonl", mixed[77:])
    found, agent = answered(model, tmp_path / "state", tmp_path / "in")
    for entity in ("pump", "fan"):
        own = [each["scores"] for each in found if each["entity"] == entity]
        np.testing.assert_allclose(own, [each["scores"] for each in alone])
    assert (found[0]["file"], found[0]["line"]) == ("2.jsonl", 4)  # row 81, the 41st of the pump
    assert agent.counts.lines == 180


def test_the_next_start_goes_on_where_the_last_one_ended(model: EdgeModel, tmp_path: Path) -> None:
    rows = plant_rows(100)
    whole, _ = answered(model, tmp_path / "whole", write(tmp_path / "rows.jsonl", rows))
    for number in (30, 60, 61, 100):
        answered(model, tmp_path / "state", write(tmp_path / "rows.jsonl", rows[:number]))
    assert list(answers_of(tmp_path / "state")) == whole
    assert answered(model, tmp_path / "state", tmp_path / "rows.jsonl")[0] == []


def test_another_file_of_the_same_name_is_refused(model: EdgeModel, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", plant_rows(60))
    answered(model, tmp_path / "state", source)
    write(source, plant_rows(90, "fan"))
    with pytest.raises(InputError, match="not the file that was read before"):
        answered(model, tmp_path / "state", source)
    write(source, plant_rows(10))
    with pytest.raises(InputError, match="not the file that was read before"):
        answered(model, tmp_path / "state", source)


# bad input ----------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Row], Any], str]] = {
    "missing": (lambda row: {k: v for k, v in row.items() if k != "load"}, "load: missing; write null"),
    "no time": (lambda row: {k: v for k, v in row.items() if k != "time"}, "time: missing"),
    "extra": (lambda row: row | {"colour": "red"}, "colour: not a field of this model"),
    "no number": (lambda row: row | {"load": "much"}, "load: 'much' is not a number"),
    "a list": (lambda row: row | {"load": [1]}, "load: [1] is not a number"),
    "an enormous number": (lambda row: row | {"load": 10**400}, "load: 1000"),
    "no text": (lambda row: row | {"site": 7}, "site: 7 is not text"),
    "no instant": (lambda row: row | {"time": "yesterday"}, "time: give an ISO instant"),
    "an instant too far": (lambda row: row | {"time": "0001-01-01T00:00:00+14:00"}, "time: give"),
    "entity": (lambda row: row | {"entity": 7}, "entity: give text"),
    "early": (lambda row: row | {"time": "2020-01-01T00:00:00"}, "time: earlier than line 9 of rows.jsonl"),
    "broken": (lambda row: b'{"time": \n', "not a row of JSON (JSONDecodeError)"),
    "no object": (lambda row: b"[1, 2]\n", "not a row of JSON: expected"),
    "not UTF-8": (lambda row: b'{"time": "\xff"}\n', "not a row of JSON (UnicodeDecodeError)"),
    "NaN": (lambda row: json.dumps(row | {"load": float("nan")}).encode() + b"\n", "NaN is not JSON"),
    "twice": (lambda row: json.dumps(row)[:-1].encode() + b', "load": 1}\n', "load: given twice"),
    "nested": (lambda row: b"[" * 100_000 + b"\n", "not a row of JSON"),
    "endless": (lambda row: b"x" * (3 * MAX_LINE_BYTES) + b"\n", f"longer than {MAX_LINE_BYTES} bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_cannot_be_used_is_answered_with_its_line_and_the_stream_goes_on(
    name: str, model: EdgeModel, tmp_path: Path
) -> None:
    change, words = BAD[name]
    rows: list[Any] = plant_rows(60)
    clean, _ = answered(model, tmp_path / "clean", write(tmp_path / "clean.jsonl", rows))
    bad = [*rows[:9], change(rows[9]), *rows[9:]]
    found, agent = answered(model, tmp_path / "state", write(tmp_path / "rows.jsonl", bad))
    [error] = [each for each in found if "error" in each]
    assert (error["file"], error["line"]) == ("rows.jsonl", 10)
    assert words in error["error"]
    assert "\n" not in error["error"]
    assert error["row"]
    assert [each["scores"] for each in found if "scores" in each] == [each["scores"] for each in clean]
    assert agent.counts.errors == 1
    assert agent.counts.lines == 61


def test_keys_in_any_order_nulls_and_a_missing_outcome_are_fine(model: EdgeModel, tmp_path: Path) -> None:
    rows = [dict(reversed(row.items())) | {"load": None} for row in plant_rows(48)]
    for row in rows[40:]:
        del row["late"]
    found, agent = answered(
        model, tmp_path / "state", write(tmp_path / "rows.jsonl", [*rows, b"\n"]), ignored=("colour",)
    )
    assert (len(found), agent.counts.errors, agent.counts.blank) == (8, 0, 1)


def test_a_clock_that_was_set_back_starts_the_window_anew_and_every_row_is_answered(
    model: EdgeModel, tmp_path: Path
) -> None:
    rows = plant_rows(50) + plant_rows(70)  # the second time with the clock set back
    found, agent = answered(model, tmp_path / "state", write(tmp_path / "rows.jsonl", rows))
    words = [each["error"] for each in found if "error" in each]
    assert sum("earlier than" in each for each in words) == SET_BACK_AFTER - 1
    assert sum("time was set back" in each for each in words) == 2  # of the 50, 40 context and 8 scored
    later = [each["line"] for each in found if "scores" in each and each["line"] > 50]
    assert later == list(range(50 + SET_BACK_AFTER + 40, 50 + SET_BACK_AFTER + 48))
    assert agent.counts.lines == 120


def test_a_model_that_gives_no_number_is_an_error_of_every_row_asked(
    model: EdgeModel, tmp_path: Path
) -> None:
    source = write(tmp_path / "rows.jsonl", plant_rows(56))
    calls: Iterator[Any] = iter([np.full((8, 1), np.nan), RuntimeError("out of range")])

    def score(*_: object) -> Any:
        found = next(calls)
        if isinstance(found, Exception):
            raise found
        return found

    agent = Agent(tmp_path / "state", Loaded("1-test", model), source, score=score)
    found = [each for some in agent.take(read_lines(str(source), {}, False)) for each in some]
    assert [each["error"] for each in found] == 8 * ["the model gave no finite number"] + 8 * [
        "the model failed (RuntimeError)"
    ]


# budgets --------------------------------------------------------------------------------------------


def interval(value: float) -> Row:
    return {"value": value, "low": value, "high": value, "n": 60}


def manifest(**costs: float) -> Row:
    points = [
        {
            "density": float(name[1:]) / 100,
            "cost": {"latency_p90_ms": interval(ms), "peak_memory_bytes": interval(ms * 1e6)},
        }
        for name, ms in costs.items()
    ]
    return {"density": 0.25, "budgets": points}


TABLE = manifest(d6=10.0, d12=20.0, d25=40.0, d50=80.0)


def test_a_target_sets_the_budget_by_the_table_and_then_by_what_is_measured() -> None:
    governor = Governor(TABLE, Target(latency_ms=50.0))
    assert governor.density == 0.25
    for _ in range(20):
        governor.seen(90.0, 0)  # this device takes over twice what the table says
    assert governor.density == 0.12
    for _ in range(20):
        governor.seen(18.0, 0)  # now it keeps to the table: 0.25 would take 36 ms
    assert governor.density == 0.25
    for _ in range(200):
        governor.seen(500.0, 0)
    assert governor.density == 0.06
    assert "no budget keeps 50 ms" in governor.note


def test_a_budget_goes_up_only_with_room_to_spare() -> None:
    governor = Governor(TABLE, Target(latency_ms=21.0))
    for _ in range(100):
        governor.seen(10.4, 0)  # the next would take 20.8 ms of 21
    assert governor.density == 0.12


def test_a_bundles_budget_falls_on_a_device_that_slows_down_and_rises_when_that_is_over(
    model: EdgeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real answers at each budget; the time they take is told by a clock of the test's."""
    table = manifest(d25=10.0, d50=20.0, d100=40.0)["budgets"]
    calibrated = replace(model, manifest=model.manifest | {"budgets": table})
    now, asked = 0.0, 0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def score(model: EdgeModel, inputs: Any, density: float) -> Any:
        nonlocal now, asked
        asked += 1
        now += 0.040 * density * (3 if 50 < asked <= 100 else 1)
        return model.score(inputs, density)

    rows, state = plant_rows(40 + 8 * 200), tmp_path / "state"
    source, options = write(tmp_path / "rows.jsonl", rows), Options(target=Target(latency_ms=45.0))
    agent = Agent(state, Loaded("1-test", calibrated), source, options, score)
    found = [each for some in agent.take(read_lines(str(source), {}, False)) for each in some]
    agent.close()
    records = read_journal(state / "answers")
    windows = [window for record in records for window in record.get("windows", [])]
    densities = [density for _, density, _ in windows]
    assert [densities[place] for place in (0, 49, 99, 199)] == [1.0, 1.0, 0.25, 1.0]
    assert sum(ms > 45.0 for ms, *_ in windows) <= 0.1 * len(windows)
    for place in (99, 199):
        expected = calibrated.score(rows[8 * place : 8 * place + 48], densities[place])
        answers = found[8 * place : 8 * place + 8]
        np.testing.assert_allclose([each["scores"] for each in answers], expected, atol=1e-6)


def test_memory_beyond_the_target_takes_the_budget_down_for_good() -> None:
    governor = Governor(TABLE, Target(memory_bytes=50e6))
    assert governor.density == 0.25
    assert governor.seen(1.0, 60_000_000)
    assert governor.density == 0.12
    assert not governor.seen(1.0, 40_000_000)
    assert governor.density == 0.12


def test_without_a_table_a_target_is_refused_and_no_target_takes_the_judged_budget() -> None:
    with pytest.raises(InputError, match="no calibration table"):
        Governor({"density": 0.25}, Target(latency_ms=1.0))
    assert Governor({"density": 0.25}, Target()).density == 0.25
    assert [point.density for point in table_of(TABLE)] == [0.06, 0.12, 0.25, 0.5]


# what a device sees of itself -----------------------------------------------------------------------


def test_three_observations_in_a_row_beyond_a_bound_take_a_model_back() -> None:
    watch, fine, bad = Watch(Limits()), Scored(1.0, 0.5, True), Scored(1.0, 0.5, False)
    said = [watch.add(bad if place % 20 == 0 else fine, 0) for place in range(300)]
    assert said[-1].startswith("5 of 100 windows without an answer")
    assert not any(said[:-1])
    calm = Watch(Limits())
    assert not any(calm.add(bad if place % 90 == 0 else fine, 0) for place in range(2000))
    slow = Watch(Limits(latency_p99_ms=10.0))
    assert "took over 10 ms" in [slow.add(Scored(11.0, 0.5, True), 0) for _ in range(300)][-1]


def test_the_bound_of_an_observation_is_that_of_the_exact_binomial_test() -> None:
    from scipy.stats import binom

    for hits in range(12):
        assert is_above(hits, 100, 0.01) == (hits > 0 and binom.sf(hits - 1, 100, 0.01) <= 0.025)


def test_scores_that_move_are_seen_and_sums_add_up() -> None:
    random = np.random.default_rng(0)
    reference = deciles(random.normal(size=2000).tolist())

    def records(shift: float, first: int) -> list[Row]:
        scores = random.normal(shift, size=(4, 50))
        return [
            {
                "n": first + place,
                "bundle": "1-a",
                "lines": 60,
                "memory": 5,
                "windows": [[1.5, 0.5, True], [2.5, 0.5, False]],
                "answers": [{"scores": [value]} for value in some] + [{"error": "load: missing"}],
            }
            for place, some in enumerate(scores.tolist())
        ]

    still, moved = summed(records(0.0, 1), reference), summed(records(1.0, 5), reference)
    assert still["score_shift"] < 0.25 < moved["score_shift"]
    both = merged(still, moved)
    assert (both["first"], both["last"], both["lines"], both["failed"]) == (1, 8, 480, 8)
    assert both["errors"] == {"load": 8}
    assert sum(both["score_bins"]) == 400


def test_audited_rows_are_bounded_and_what_went_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=3000, every=1)
    for number in range(1, 31):
        spool.keep_rows(number, "1-a", [{"load": 1.0, "scores": [0.5]}] * 10)
    kept = sorted(int(path.stem) for path in (tmp_path / "rows").iterdir())
    assert kept == list(range(kept[0], 31))
    assert spool.dropped.files == kept[0] - 1
    assert spool.dropped.rows == 10 * spool.dropped.files
    assert sum(path.stat().st_size for path in (tmp_path / "rows").iterdir()) <= 3000
    assert Spool(tmp_path, max_bytes=3000, every=1).dropped == spool.dropped
