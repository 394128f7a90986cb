"""Making MLflow agree with the release log: at every start, after every decision, and when asked."""

import logging
from collections.abc import Iterable, Mapping

from pipelines.registry import Tracker, registered_name
from pipelines.release_log import ReleaseEntry, ReleaseLog
from pipelines.rollout import replay
from validation.errors import InputError
from validation.record import Record

ALIASES = ("champion", "last_green", "challenger", "pilot", "edge")
logger = logging.getLogger(__name__)


class AliasChange(Record):
    """One alias that disagreed with the release log and was put right.

    `by_hand`: the registry had been brought up to date with the log's last entry, so nothing of ours moved
    the alias since. Otherwise it is what a decision still had to move.
    """

    model: str
    alias: str
    was: int | None
    now: int | None
    by_hand: bool

    def sentence(self) -> str:
        """What happened, for people."""
        found = "was gone" if self.was is None else f"stood at version {self.was}"
        now = "removed" if self.now is None else f"back at version {self.now}"
        if self.by_hand:
            return f"{self.model}: alias {self.alias} {found}, moved by hand in MLflow; {now}"
        moved = "removed" if self.now is None else f"moved to version {self.now}"
        return f"{self.model}: alias {self.alias} {found}; {moved}, as the release log says"


def reconcile(log: ReleaseLog, tracker: Tracker) -> list[AliasChange]:
    """Make the registry's aliases say what the release log says; the changes made, none when they agreed.

    It is the only writer of these aliases, so a crash between log and registry leaves nothing that the next
    start does not put right. What was moved by hand is also warned of. Raises InputError when the log lost
    entries that the registry has seen, or a version that should carry an alias is gone.
    """
    # One at a time, and reading the log inside, so the last to run has always seen the newest entry.
    with log.store.reconciling():
        entries = log.entries()
        datasets = sorted({entry.decision.dataset for entry in entries})
        changes = [change for dataset in datasets for change in _reconcile_one(entries, dataset, tracker)]
    return changes


def warn_of(changes: Iterable[AliasChange]) -> None:
    """Say on the terminal what somebody moved by hand; the rest is our own unfinished business."""
    for change in changes:
        if change.by_hand:
            logger.warning("%s", change.sentence())


def refuse_lost_entries(entries: list[ReleaseEntry], dataset: str, tracker: Tracker) -> str | None:
    """The last entry that the registry has seen. Raises InputError when the log does not hold it any more."""
    model = registered_name(dataset)
    seen = tracker.release_head(model)
    if seen and all(entry.hash != seen for entry in entries):
        lost = f"the registry has seen release {seen[:12]}, which the release log has not"
        raise InputError(f"{model}: {lost}; restore the log from a backup")
    return seen


def _reconcile_one(entries: list[ReleaseEntry], dataset: str, tracker: Tracker) -> list[AliasChange]:
    model, state = registered_name(dataset), replay(entries, dataset)
    seen = refuse_lost_entries(entries, dataset, tracker)
    present = tracker.aliases(model)
    changes = _differences(model, present, state.aliases(), by_hand=seen == state.head)
    for change in changes:
        if change.now is None:
            tracker.delete_alias(model, change.alias)
        else:
            tracker.set_alias(model, change.alias, change.now)
    if seen != state.head:
        key = next(entry.key for entry in entries if entry.hash == state.head)
        tracker.note_release_head(model, state.head, key)
    return changes


def _differences(
    model: str, present: Mapping[str, int], wanted: Mapping[str, int], by_hand: bool
) -> list[AliasChange]:
    return [
        AliasChange(model=model, alias=alias, was=present.get(alias), now=wanted.get(alias), by_hand=by_hand)
        for alias in ALIASES
        if present.get(alias) != wanted.get(alias)
    ]
