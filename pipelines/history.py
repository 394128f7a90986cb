"""What was live when, and whether the log that says so can be believed."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from pipelines.reconciliation import refuse_lost_entries
from pipelines.registry import Tracker
from pipelines.release_log import GENESIS, Action, ReleaseEntry, ReleaseLog
from pipelines.rollout import RolloutState, replay
from validation.errors import InputError, unknown_name
from validation.record import Record


class Audit(Record):
    """What a verification of the whole log found. Where it does not hold, InputError is raised instead."""

    place: str
    num_entries: int
    head: str
    """Hash of the last entry: noted elsewhere, it lets a later audit see that nothing was cut off."""
    datasets: Mapping[str, RolloutState]
    keys: tuple[str, ...]
    """Ids of the keys that signed."""
    notes: tuple[str, ...]
    """What is no proof of tampering and still worth knowing."""
    compared_with_registry: bool


def parse_instant(text: str) -> datetime:
    """An ISO date (its end, UTC) or time (UTC unless it names a zone). Raises InputError."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--at: {text!r} is no date; write 2026-03-01 or 2026-03-01T14:30, in UTC") from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    is_whole_day = _is_date(text)
    return instant + (timedelta(days=1) - timedelta(milliseconds=1) if is_whole_day else timedelta())


def _is_date(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text))
    except ValueError:
        return False


def entries_until(entries: list[ReleaseEntry], instant: datetime) -> list[ReleaseEntry]:
    """The log as it stood at `instant`: everything up to the last entry that was written by then."""
    written = [
        number
        for number, entry in enumerate(entries, start=1)
        if datetime.fromisoformat(entry.time) <= instant
    ]
    return entries[: written[-1]] if written else []


def datasets_of(entries: list[ReleaseEntry]) -> list[str]:
    return sorted({entry.decision.dataset for entry in entries})


def let_in(entries: list[ReleaseEntry], dataset: str) -> ReleaseEntry | None:
    """The decision by which what is live came to be live, in the stage where it is."""
    moves = (Action.BOOTSTRAP, Action.PROMOTE, Action.DEMOTE, Action.ROLLBACK)
    own = (entry for entry in reversed(entries) if entry.decision.dataset == dataset)
    return next((entry for entry in own if entry.decision.action in moves), None)


def decisions_on(entries: list[ReleaseEntry], verdict: str) -> list[str]:
    """What the log says was decided on a verdict's digest, a sentence each."""
    return [
        f"entry {entry.sequence} ({entry.hash[:12]}): {entry.decision.action} by {entry.decision.actor}"
        for entry in entries
        if entry.decision.verdict == verdict
    ]


def refuse_unknown_dataset(entries: list[ReleaseEntry], dataset: str) -> None:
    known = datasets_of(entries)
    if not known:
        raise InputError(f"{dataset}: the release log is empty; see: dankai rollout run --help")
    if dataset not in known:
        raise InputError(f"the release log: {unknown_name('dataset', dataset, known)}")


def only_dataset(entries: list[ReleaseEntry]) -> str:
    """The one dataset of the log. Raises InputError where there is none, or a choice."""
    known = datasets_of(entries)
    if not known:
        raise InputError("the release log is empty; see: dankai rollout run --help")
    if len(known) > 1:
        raise InputError(f"say which dataset: {', '.join(known)}")
    return known[0]


def audit(log: ReleaseLog, tracker: Tracker | None, noted_head: str | None = None) -> Audit:
    """Check chain, hashes, signatures and the legality of every move, and that no tail is missing.

    The tail is compared with the heads noted in the registry (unless `tracker` is None) and with
    `noted_head`, an entry's hash that somebody wrote down elsewhere. Raises InputError for the first thing
    that does not hold.
    """
    entries = log.entries()
    states = {name: replay(entries, name) for name in datasets_of(entries)}
    if noted_head is not None:
        _refuse_without(entries, noted_head)
    unknown: list[str] = []
    if tracker is not None:
        for name in states:
            refuse_lost_entries(entries, name, tracker)
        unknown = _releases_elsewhere(log, entries, tracker)
    return Audit(
        place=log.store.place,
        num_entries=len(entries),
        head=entries[-1].hash if entries else GENESIS,
        datasets=states,
        keys=tuple(sorted({entry.key for entry in entries})),
        notes=tuple(_notes(entries, unknown)),
        compared_with_registry=tracker is not None,
    )


def _refuse_without(entries: list[ReleaseEntry], noted_head: str) -> None:
    is_short = len(noted_head) < 8
    if is_short or not any(entry.hash.startswith(noted_head) for entry in entries):
        why = (
            "give at least 8 digits of it"
            if is_short
            else "the release log holds no such entry: its end was cut; restore a backup"
        )
        raise InputError(f"--head: {noted_head}: {why}")


def _releases_elsewhere(log: ReleaseLog, entries: list[ReleaseEntry], tracker: Tracker) -> list[str]:
    """Datasets that MLflow knows releases of and this log does not.

    A registry may serve several installations, each with keys of its own. Raises InputError where a key of
    this one signed the releases, or where this log holds nothing at all: then they were in it.
    """
    released = tracker.released_datasets()
    lacking = sorted(set(released) - set(datasets_of(entries)))
    lost = [name for name in lacking if not entries or log.trusts(released[name])]
    if lost:
        raise InputError(
            f"{log.store.place}: MLflow has seen releases of {', '.join(lost)}, and the release log holds "
            "none: it was emptied; restore a backup"
        )
    return lacking


def _notes(entries: list[ReleaseEntry], released_elsewhere: list[str]) -> list[str]:
    back = [
        f"entry {after.sequence} is dated before entry {before.sequence}: a clock was set back"
        for before, after in pairwise(entries)
        if after.time < before.time
    ]
    elsewhere = "of which this log has none: another installation's, by their key"
    return [*back, *(f"MLflow knows releases of {name}, {elsewhere}" for name in released_elsewhere)]
