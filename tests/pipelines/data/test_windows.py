"""What a model gets to see: nothing past the cutoff, nothing fitted outside training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import Snapshot
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.data.windows import WindowBatch, Windows, training_rows
from tests.futures import MINUTE_US, with_another_future

Flights = tuple[DatasetSpec, Snapshot, pl.DataFrame]
Write = Callable[..., Path]
Prepare = Callable[[Path], Windows]

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def flight_windows(flights: Flights) -> Windows:
    spec, snapshot, table = flights
    return Windows(snapshot, spec, fit_preprocessing(training_rows(table, spec), spec), table)


def assert_same_inputs(one: WindowBatch, other: WindowBatch) -> None:
    np.testing.assert_array_equal(one.numeric, other.numeric)
    np.testing.assert_array_equal(one.known, other.known)
    np.testing.assert_array_equal(one.categorical, other.categorical)
    np.testing.assert_array_equal(one.target_mask, other.target_mask)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), seed=st.integers(0, 2**32 - 1), lookback=st.integers(1, 24))
def test_no_input_changes_with_what_is_not_known_at_the_cutoff(
    position: float, seed: int, lookback: int, write_job: Write, prepare: Prepare
) -> None:
    windows = prepare(write_job())
    cutoffs = windows.cutoffs("train")
    cutoff = cutoffs[round(position * (len(cutoffs) - 1))]
    other = with_another_future(windows, int(cutoff), seed)
    one, two = windows.batch(np.array([cutoff]), lookback), other.batch(np.array([cutoff]), lookback)
    assert_same_inputs(one, two)
    assert (one.target[:, lookback:] != two.target[:, lookback:]).all()


@pytest.mark.parametrize("share", [0.0, 0.31, 0.77, 1.0])
def test_no_input_of_the_flights_changes_with_their_future(flight_windows: Windows, share: float) -> None:
    cutoffs = flight_windows.cutoffs("test")
    cutoff = int(cutoffs[round(share * (len(cutoffs) - 1))])
    other = with_another_future(flight_windows, cutoff, seed=7)
    one, two = flight_windows.batch(np.array([cutoff])), other.batch(np.array([cutoff]))
    assert_same_inputs(one, two)
    horizon = slice(flight_windows.lookback, None)
    assert np.array_equal(one.target[:, horizon], 1 - two.target[:, horizon])


def test_inputs_do_change_with_what_is_known(flight_windows: Windows) -> None:
    """The comparison above can fail: seen from a later cutoff, the same change shows."""
    cutoff = int(flight_windows.cutoffs("test")[3])
    other = with_another_future(flight_windows, cutoff, seed=7)
    later = np.array([cutoff + 500])
    assert not np.array_equal(flight_windows.batch(later).numeric, other.batch(later).numeric)


def test_a_delay_is_unknown_until_departure_and_an_outcome_for_an_hour_at_most(
    flight_windows: Windows,
) -> None:
    batch = flight_windows.batch(flight_windows.cutoffs("test")[::20])
    names = flight_windows.numeric_names
    departed = flight_windows.table["departed_at"].to_physical().fill_null(2**62).to_numpy()[batch.rows]
    known_delay = batch.known[..., names.index("dep_delay")] == 1
    assert not (known_delay & (departed > batch.cutoff_us[:, None])).any()
    waiting = (departed > batch.cutoff_us[:, None])[:, : flight_windows.lookback]
    assert waiting.sum() > 100
    outcome_known = batch.known[..., names.index("late")] == 1
    age = batch.cutoff_us[:, None] - flight_windows.time_us[batch.rows]
    past = np.arange(batch.rows.shape[1]) < flight_windows.lookback
    assert outcome_known[(age >= 60 * MINUTE_US) & past].all()
    assert not outcome_known[:, ~past].any()


def test_the_horizon_shows_what_is_known_in_advance_and_nothing_else(flight_windows: Windows) -> None:
    batch = flight_windows.batch(flight_windows.cutoffs("test")[:4])
    horizon = batch.known[:, flight_windows.lookback :]
    seen = {flight_windows.numeric_names[position] for position in np.nonzero(horizon.max(axis=(0, 1)))[0]}
    waves = {f"{cycle}_{wave}" for cycle in ("hour", "weekday", "month") for wave in ("sin", "cos")}
    assert seen == {"distance", "lead_hours"} | waves
    assert (batch.categorical[:, flight_windows.lookback :] > 0).mean() > 0.99


def test_preprocessing_is_fitted_on_training_rows_alone(flights: Flights, flight_windows: Windows) -> None:
    spec, _, table = flights
    start = spec.split.validation
    scrambled = table.with_columns(
        pl.when(pl.col("time") < start).then(pl.col("dep_delay")).otherwise(1234.0).alias("dep_delay"),
        pl.when(pl.col("time") < start).then(pl.col("dest")).otherwise(pl.lit("XXX")).alias("dest"),
    )
    assert fit_preprocessing(training_rows(scrambled, spec), spec) == flight_windows.preprocessing


def test_training_inputs_are_standardised_and_a_constant_column_does_not_explode(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    windows = prepare(write_job(table.with_columns(plan=pl.lit(0.1))))
    training = windows.values[windows.parts == 0]
    assert training[:, 0].mean() == pytest.approx(0, abs=1e-5)
    assert training[:, 0].std() == pytest.approx(1, abs=1e-5)
    assert np.abs(training[:, 1]).max() < 1e-6


def test_a_value_outside_its_range_counts_as_unknown(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    path = write_job(table, ranges={"load": [0, 50]})
    windows = prepare(path)
    batch = windows.batch(windows.cutoffs("train")[:5])
    load = table["load"].to_numpy()[batch.rows[:, :24]]
    np.testing.assert_array_equal(batch.known[:, :24, 0], (load <= 50).astype(np.float32))
    assert (batch.numeric[:, :24, 0][load > 50] == 0).all()


def test_a_category_not_seen_in_training_is_unknown(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    new = table.with_columns(
        state=pl.when(pl.col("at") > pl.datetime(2024, 1, 13)).then(pl.lit("broken")).otherwise("state")
    )
    windows = prepare(write_job(new))
    assert windows.cardinalities == (3,)
    assert windows.batch(windows.cutoffs("test")[-1:]).categorical[0, 20, 0] == 0
    assert windows.batch(windows.cutoffs("train")[:1]).categorical[0, :24, 0].min() == 1


def test_a_category_that_is_not_allowed_is_unknown_in_training_too(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    typo = table.with_columns(state=pl.when(pl.col("load") == 37).then(pl.lit("buzy")).otherwise("state"))
    windows = prepare(write_job(typo, allowed={"state": ["busy", "idle"]}))
    assert [each.values for each in windows.preprocessing.vocabularies] == [("busy", "idle")]
    np.testing.assert_array_equal(windows.codes[:, 0] == 0, typo["state"].to_numpy() == "buzy")
    assert windows.codes.min() == 0


def test_an_outcome_that_is_neither_0_nor_1_is_not_asked_and_not_known(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    """Of every other row: nothing is the same as if the outcome had never been known."""
    odd = pl.col("load") == 37
    windows = prepare(write_job(table.with_columns(tripped=pl.when(odd).then(2).otherwise("tripped"))))
    clean = prepare(write_job(table))
    batch, plain = (each.batch(each.cutoffs("train")) for each in (windows, clean))
    is_odd = windows.table.select(odd).to_series().to_numpy()[batch.rows]
    assert is_odd[:, :24].any()
    assert is_odd[:, 24:].any()
    np.testing.assert_array_equal(batch.target_mask[..., 0], plain.target_mask[..., 0] * ~is_odd)
    np.testing.assert_array_equal(batch.target[..., 0], plain.target[..., 0] * ~is_odd)
    np.testing.assert_array_equal(batch.known[..., -1], plain.known[..., -1] * ~is_odd)
    np.testing.assert_array_equal(batch.numeric[..., -1], plain.numeric[..., -1] * ~is_odd)
    np.testing.assert_array_equal(batch.numeric[..., :-1], plain.numeric[..., :-1])


def test_a_part_keeps_its_horizons_to_itself(flight_windows: Windows) -> None:
    assert flight_windows.part_names == ("train", "validation", "test", "2013-10", "2013-11", "2013-12")
    for number, part in enumerate(flight_windows.part_names):
        cutoffs = flight_windows.cutoffs(part)
        horizon = flight_windows.batch(cutoffs[[0, -1]]).rows[:, flight_windows.lookback :]
        assert set(flight_windows.parts[horizon].ravel()) == {number}
        if part != "train":
            assert set(np.diff(cutoffs)) == {flight_windows.spec.stride}


def test_the_rows_of_a_replayed_month_are_that_month(flight_windows: Windows) -> None:
    assert flight_windows.rows_of("2013-11")["time"].dt.month().unique().to_list() == [11]
    parts = [flight_windows.rows_of(part) for part in flight_windows.part_names]
    assert sum(map(len, parts)) == len(flight_windows.table)


def test_a_shorter_lookback_is_the_end_of_the_longer_one(flight_windows: Windows) -> None:
    cutoffs = flight_windows.cutoffs("validation")[:3]
    long, short = flight_windows.batch(cutoffs), flight_windows.batch(cutoffs, 100)
    assert short.numeric.shape[1] == 100 + flight_windows.horizon
    np.testing.assert_array_equal(short.numeric, long.numeric[:, -short.numeric.shape[1] :])
    np.testing.assert_array_equal(short.target_mask, long.target_mask[:, -short.numeric.shape[1] :])


def machines(table: pl.DataFrame) -> pl.DataFrame:
    """Three series of 400, 250 and 150 rows."""
    parts = [
        table[:length].with_columns(pump=pl.lit(name))
        for name, length in (("a", 400), ("b", 250), ("c", 150))
    ]
    return pl.concat(parts)


@pytest.mark.parametrize("lookback", [7, 32, 50])
def test_detection_scores_every_step_of_a_part_once(
    lookback: int, table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    changes = {
        "task": "detect",
        "horizon": 0,
        "entity": "pump",
        "target": ["load", "plan"],
        "late": None,
        "known_future": None,
    }
    split = {"validation": 0.4, "test": 0.55}
    path = write_job(
        machines(table), **changes, target_known_at=None, label="tripped", lookback=lookback, split=split
    )
    windows = prepare(path)
    for part in ("validation", "test"):
        batch = windows.batch(windows.cutoffs(part))
        scored = np.bincount(batch.rows[batch.target_mask[..., 0] == 1], minlength=len(windows.parts))
        np.testing.assert_array_equal(scored, windows.parts == windows.part_names.index(part))


def test_no_window_crosses_from_one_entity_to_another(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    windows = prepare(write_job(machines(table), entity="pump", split={"validation": 0.5, "test": 0.7}))
    entities = windows.column("entity")
    for part in windows.part_names:
        rows = windows.batch(windows.cutoffs(part)).rows
        assert (entities[rows] == entities[rows[:, :1]]).all()


def test_a_series_too_short_for_a_window_is_left_out(
    table: pl.DataFrame, write_job: Write, prepare: Prepare
) -> None:
    short = pl.concat([table.with_columns(pump=pl.lit("a")), table[:20].with_columns(pump=pl.lit("b"))])
    windows = prepare(write_job(short, entity="pump", split={"validation": 0.5, "test": 0.7}))
    assert windows.cutoffs("train").max() < 400


def test_etth1_is_split_and_scaled_as_published(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """12/4/4 months of 30 days: 8640, 2880 and 2880 hours; the seven columns z-scored on the first part."""
    from pipelines.data.snapshot import read_snapshot, take_snapshot

    monkeypatch.setenv("DANKAI_DATA", str(data_folder))
    spec = load_spec(ROOT / "infra" / "datasets" / "etth1.yaml")
    snapshot = take_snapshot(spec, tmp_path)
    table = read_snapshot(snapshot)
    windows = Windows(snapshot, spec, fit_preprocessing(training_rows(table, spec), spec))
    assert [int((windows.parts == part).sum()) for part in (0, 1, 2, -1)] == [8640, 2880, 2880, 17420 - 14400]
    assert len(windows.cutoffs("test", stride=1)) == 2880 - 96 + 1
    np.testing.assert_allclose(windows.targets[:8640].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(windows.targets[:8640].std(0), 1, atol=1e-4)
    batch = windows.batch(windows.cutoffs("test", stride=1), lookback=24)
    last_day = np.tile(batch.target[:, :24], (1, 4, 1))
    # The note beside the data says .513 for repeating the last day.
    assert np.mean((batch.target[:, 24:] - last_day) ** 2) == pytest.approx(0.513, abs=0.001)
    assert batch.target_mask.sum() == len(batch.target) * 96 * 7
