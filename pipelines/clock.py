"""The time as records carry it."""

from datetime import UTC, datetime


def now() -> str:
    """This second, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
