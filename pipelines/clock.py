"""The time as records carry it."""

from datetime import UTC, datetime


def now() -> str:
    """This second, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_the_minute(time: str) -> str:
    """An ISO time as people read it: 2013-07-01 05:15."""
    return time[:16].replace("T", " ")
