"""A table that is read in parts gives what the same table in memory gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.data.contract import contract_of
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import Snapshot, read_snapshot, take_snapshot
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.data.stream import chunks
from pipelines.data.windows import Windows, refuse_unusable_split, training_chunks, training_rows
from pipelines.training_batches import Batches
from validation.data import ROW, validate, validate_parts

ARRAYS = ("time_us", "offsets", "values", "present", "codes", "targets", "target_present", "parts")


@pytest.fixture
def taken(
    table: pl.DataFrame, write_job: Callable[..., Path], tmp_path: Path
) -> tuple[DatasetSpec, Snapshot]:
    """Three entities whose rows end and begin within parts; one load is far out of range."""
    mixed = table.with_columns(
        pump=pl.Series(["a"] * 100 + ["b"] * 170 + ["c"] * 130),
        load=pl.when(pl.int_range(pl.len()) == 333).then(1e9).otherwise(pl.col("load")),
    )
    share = {"validation": 0.5, "test": 0.75}
    spec = load_spec(write_job(mixed, entity="pump", split=share, ranges={"load": [-200, 200]}, lookback=12))
    return spec, take_snapshot(spec, tmp_path / "snapshots")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def shrink() -> None:
        monkeypatch.setattr("pipelines.data.windows.WHOLE_ROWS", 100)
        monkeypatch.setattr("pipelines.data.stream.CHUNK_ROWS", 64)

    return shrink


def test_windows_of_a_table_in_parts_are_those_of_the_whole(
    taken: tuple[DatasetSpec, Snapshot], small_parts: Callable[[], None]
) -> None:
    spec, snapshot = taken
    whole_table = read_snapshot(snapshot)
    preprocessing = fit_preprocessing(training_rows(whole_table, spec), spec)
    whole = Windows(snapshot, spec, preprocessing)
    small_parts()
    in_parts = Windows(snapshot, spec, preprocessing)
    assert isinstance(in_parts.values, np.memmap)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(in_parts, name), getattr(whole, name), err_msg=name)
    assert in_parts.known_at_us.keys() == whole.known_at_us.keys()
    for position, at in whole.known_at_us.items():
        np.testing.assert_array_equal(in_parts.known_at_us[position], at)
    for name in ("entity", "state", "tripped", "time"):
        np.testing.assert_array_equal(in_parts.column(name), whole.column(name))
    for part in whole.part_names:
        np.testing.assert_array_equal(in_parts.cutoffs(part), whole.cutoffs(part))
        assert in_parts.rows_of(part).equals(whole.rows_of(part))
    refuse_unusable_split(in_parts)


def test_preprocessing_of_a_table_in_parts_is_that_of_the_whole(
    taken: tuple[DatasetSpec, Snapshot], small_parts: Callable[[], None]
) -> None:
    spec, snapshot = taken
    whole = fit_preprocessing(training_rows(read_snapshot(snapshot), spec), spec)
    small_parts()
    in_parts = fit_preprocessing(training_chunks(snapshot, spec), spec)
    assert (in_parts.vocabularies, in_parts.lead) == (whole.vocabularies, whole.lead)
    for ours, theirs in zip(in_parts.scales, whole.scales, strict=True):
        assert (ours.mean, ours.std) == pytest.approx((theirs.mean, theirs.std), rel=1e-12)


def test_a_verdict_on_a_table_in_parts_is_that_on_the_whole(
    taken: tuple[DatasetSpec, Snapshot],
    small_parts: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, snapshot = taken
    contract = contract_of(spec)
    frame = read_snapshot(snapshot).to_pandas()
    whole = validate(frame, contract, tmp_path / "a/docs", tmp_path / "a", max_quarantined_share=0.1)
    small_parts()
    monkeypatch.setattr("pipelines.data.stream.CHUNK_ROWS", 250)
    parts = (rows.to_pandas() for rows in chunks(snapshot.uri))
    found = validate_parts(parts, contract, tmp_path / "b/docs", tmp_path / "b", max_quarantined_share=0.1)
    places = {"quarantine_uri": "", "docs_uri": ""}
    assert found.model_copy(update=places) == whole.model_copy(update=places)
    aside = pl.read_parquet(found.quarantine_uri or "")
    assert aside[ROW].to_list() == [333]
    assert aside.equals(pl.read_parquet(whole.quarantine_uri or ""))


def test_training_draws_each_cutoff_there_is(taken: tuple[DatasetSpec, Snapshot]) -> None:
    """The same ones as from the list of all, which a large table has no room for."""
    spec, snapshot = taken
    windows = Windows(snapshot, spec, fit_preprocessing(training_chunks(snapshot, spec), spec))
    cutoffs = windows.cutoffs("train")
    batches = Batches(windows, spec.training, "dense", 0, 0, 1)
    for step in range(3):
        drawn = np.random.default_rng((0, step)).choice(cutoffs, size=500)
        np.testing.assert_array_equal(batches._drawn(step, 500), drawn)
