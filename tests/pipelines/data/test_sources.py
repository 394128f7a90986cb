"""Files become one canonical table; the built-in one keeps its facts; snapshots are frozen."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from pipelines.data.contract import contract_of
from pipelines.data.snapshot import Snapshot, read_snapshot, take_snapshot
from pipelines.data.sources import read_source, source_place
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.data.stream import content_hash

Flights = tuple[DatasetSpec, Snapshot, pl.DataFrame]
SHIPPED = sorted((Path(__file__).parents[3] / "infra" / "datasets").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_dataset_file_parses_and_comes_back_from_json(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert DatasetSpec.model_validate_json(spec.model_dump_json()) == spec
    assert contract_of(spec).targets == spec.target


def test_three_dataset_files_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"flights", "server_machines", "etth1"}


def test_the_flights_are_all_there_and_in_order_of_schedule(flights: Flights) -> None:
    _, snapshot, table = flights
    assert (snapshot.num_rows, len(table)) == (336_776, 336_776)
    assert table["time"].is_sorted()
    assert (snapshot.start, snapshot.end) == (datetime(2013, 1, 1, 5, 15), datetime(2013, 12, 31, 23, 59))


def test_the_order_within_a_minute_tells_nothing_of_the_outcome(flights: Flights) -> None:
    """In the package's own order the later rows of a minute left later; here it is the carrier's name."""
    _, _, table = flights
    order = table.with_columns(place=pl.int_range(pl.len()).over("time"), size=pl.len().over("time"))
    shared = order.filter((pl.col("size") > 1) & pl.col("dep_delay").is_not_null())
    assert shared.height > 100_000
    assert shared.select(pl.col("carrier").is_sorted().over("time").all()).item()
    last_place = shared.filter(pl.col("place") == pl.col("size") - 1)
    first_place = shared.filter(pl.col("place") == 0)
    assert abs(last_place["late"].to_numpy().mean() - first_place["late"].to_numpy().mean()) < 0.02


def test_late_is_over_an_hour_or_cancelled(flights: Flights) -> None:
    _, _, table = flights
    cancelled, over = table["dep_delay"].is_null(), table["dep_delay"].fill_null(0) > 60
    assert (cancelled.sum(), over.sum()) == (8_255, 26_581)
    assert ((table["late"] == 1) == (cancelled | over)).all()


def test_an_outcome_is_known_at_departure_or_an_hour_after_schedule(flights: Flights) -> None:
    _, _, table = flights
    waited = (table["outcome_known_at"] - table["time"]).dt.total_minutes()
    assert waited.max() == 60
    assert (waited.filter(table["late"] == 1) == 60).all()
    left = table.filter(pl.col("late") == 0)
    assert (left["outcome_known_at"] == left["departed_at"]).all()
    assert table.filter(pl.col("departed_at").is_null()).height == 8_255


def test_a_flight_sees_the_weather_of_the_hour_before(flights: Flights) -> None:
    """10:00 UTC is 5 in the morning in New York: that observation belongs to the flights of 6 o'clock."""
    import csv

    from pipelines.data.flights import package_files

    _, _, table = flights
    with package_files()[1].open() as file:
        observed = {(row["origin"], row["time_hour"]): row["temp"] for row in csv.DictReader(file)}
    at_six = table.filter(
        (pl.col("origin") == "EWR") & (pl.col("time").dt.truncate("1h") == datetime(2013, 1, 1, 6))
    )
    assert at_six.height > 10
    assert at_six["temp"].unique().to_list() == [float(observed["EWR", "2013-01-01T10:00:00Z"])]


def test_a_folder_of_files_is_one_table_with_an_entity_for_each(data_folder: Path, tmp_path: Path) -> None:
    spec = load_spec(SHIPPED[[path.stem for path in SHIPPED].index("server_machines")])
    spec = spec.model_copy(
        update={"source": spec.source.model_copy(update={"path": f"{data_folder}/server_machines"})}
    )
    table = read_snapshot(take_snapshot(spec, tmp_path))
    machines = ["machine-1-6", "machine-1-7", "machine-2-1", "machine-2-2", "machine-2-7"]
    assert table["entity"].unique(maintain_order=True).to_list() == machines
    steps = table.select(pl.col("time").diff().over("entity").drop_nulls().unique())
    assert steps["time"].dt.total_seconds().to_list() == [60]


def test_a_relative_path_starts_at_the_repository_and_an_environment_variable_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    (repository / "deep" / "down").mkdir(parents=True)
    (repository / "pyproject.toml").touch()
    text = SHIPPED[0].read_text().replace("name: etth1", "name: copied")
    path = repository / "deep" / "down" / "copied.yaml"
    path.write_text(text)
    monkeypatch.delenv("DANKAI_DATA", raising=False)
    assert source_place(load_spec(path)) == tmp_path / "shared" / "data" / "ett" / "ETTh1.csv"
    monkeypatch.setenv("DANKAI_DATA", str(tmp_path / "elsewhere"))
    assert source_place(load_spec(path)) == tmp_path / "elsewhere" / "ett" / "ETTh1.csv"


@pytest.mark.parametrize("rows_at_once", [1 << 22, 250, 1])
def test_rows_of_mixed_entities_are_brought_together_in_their_own_order(
    table: pl.DataFrame,
    write_job: Callable[..., Path],
    tmp_path: Path,
    rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether all fit in memory, some of them together, or no two of them."""
    monkeypatch.setattr("pipelines.data.snapshot.WHOLE_ROWS", rows_at_once)
    mixed = table.with_columns(pump=pl.Series(["b", "a", "d", "c"] * (len(table) // 4)))
    spec = load_spec(write_job(mixed, entity="pump", step=None))
    canonical = read_snapshot(take_snapshot(spec, tmp_path))
    assert canonical["entity"].rle().struct.field("value").to_list() == ["a", "b", "c", "d"]
    assert canonical.select(pl.col("time").is_sorted().over("entity").all()).item()
    assert canonical.sort("time")["load"].equals(read_source(spec).collect().sort("time")["load"])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_same_table_has_the_same_hash_however_a_file_lays_it_out(
    table: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking a snapshot twice once gave two hashes: a Parquet writer on several threads may cut anywhere."""
    table = table.with_columns(text=pl.Series(["", "é", None, "long enough"] * (len(table) // 4)))
    hashes = set()
    for number, rows in enumerate((7, 64, 400)):
        table.write_parquet(tmp_path / f"{number}.parquet", row_group_size=rows, compression="zstd")
        monkeypatch.setattr("pipelines.data.stream.CHUNK_ROWS", 100 + 13 * number)
        hashes.add(content_hash(tmp_path / f"{number}.parquet"))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "change",
    [
        pl.col("text").fill_null(""),
        pl.col("text").str.replace("long ", " long"),
        pl.col("load").shift(1),
        pl.col("load").cast(pl.Float32),
        pl.col("load").alias("burden"),
    ],
)
def test_another_table_has_another_hash(table: pl.DataFrame, tmp_path: Path, change: pl.Expr) -> None:
    table = table.with_columns(text=pl.Series(["", "é", None, "long enough"] * (len(table) // 4)))
    table.write_parquet(tmp_path / "one.parquet")
    table.with_columns(change).write_parquet(tmp_path / "other.parquet")
    assert content_hash(tmp_path / "one.parquet") != content_hash(tmp_path / "other.parquet")


def test_times_with_a_zone_become_utc(
    table: pl.DataFrame, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_job(source={"kind": "parquet", "path": "pump.parquet"})
    table.with_columns(pl.col("at").dt.replace_time_zone("Asia/Tokyo")).write_parquet(
        tmp_path / "pump.parquet"
    )
    assert read_source(load_spec(path)).collect()["time"][0] == datetime(2023, 12, 31, 15)


def test_a_snapshot_is_reused_until_its_inputs_change(
    table: pl.DataFrame, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "snapshots"
    first = take_snapshot(load_spec(write_job()), folder)
    written = Path(first.uri).stat().st_mtime_ns
    longer_lookback = load_spec(write_job(lookback=48))
    assert take_snapshot(longer_lookback, folder) == first
    assert Path(first.uri).stat().st_mtime_ns == written
    other = take_snapshot(load_spec(write_job(table[:-1])), folder)
    assert other.content_hash != first.content_hash
    assert (first.num_rows, other.num_rows) == (400, 399)


def test_a_damaged_snapshot_is_taken_again(write_job: Callable[..., Path], tmp_path: Path) -> None:
    spec = load_spec(write_job())
    first = take_snapshot(spec, tmp_path)
    Path(first.uri).write_bytes(b"half of it")
    again = take_snapshot(spec, tmp_path)
    assert again.content_hash == first.content_hash
    assert read_snapshot(again).height == 400
