"""What was live when; and what an audit finds, and says that it cannot."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines.decisions import demote, rollback
from pipelines.history import audit, entries_until, let_in, only_dataset, parse_instant
from pipelines.reconciliation import reconcile
from pipelines.registry import Tracker
from pipelines.release_log import FORMAT, Decision, ReleaseEntry, ReleaseLog, Stage
from pipelines.release_store import FileStore
from pipelines.rollout import replay
from tests.release_cases import ADA, DATASET, climbed, log_in, register_versions, started
from validation.errors import InputError


def dated(entries: list[ReleaseEntry], days: list[int]) -> list[ReleaseEntry]:
    """The entries as if written at noon of these days of March 2026."""
    first = datetime(2026, 3, 1, 12, tzinfo=UTC)
    times = [(first + timedelta(days=day - 1)).isoformat(timespec="milliseconds") for day in days]
    return [entry.model_copy(update={"time": time}) for entry, time in zip(entries, times, strict=True)]


def live_at(entries: list[ReleaseEntry], text: str) -> tuple[Stage, int | None]:
    state = replay(entries_until(entries, parse_instant(text)), DATASET)
    return state.stage, state.champion


def test_what_was_live_at_any_moment_is_what_the_log_said_then(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    state = climbed(log)
    state = demote(log, state, Stage.TRAINING, ADA, "the device changed")
    rollback(log, state, ADA, "slow")
    entries = dated(log.entries(), [1, 2, 3, 5, 6, 7])
    assert live_at(entries, "2026-02-28") == (Stage.NONE, None)
    assert live_at(entries, "2026-03-01T11:59:59") == (Stage.NONE, None)
    assert live_at(entries, "2026-03-01") == (Stage.PILOT, 1)  # a date is its end
    assert live_at(entries, "20260301") == (Stage.PILOT, 1)
    assert live_at(entries, "2026-03-02T12:00") == (Stage.TRAINING, 2)
    assert live_at(entries, "2026-03-04") == (Stage.EDGE, 3)
    assert live_at(entries, "2026-03-05T14:00+03:00") == (Stage.EDGE, 3)  # 11:00 UTC
    assert live_at(entries, "2026-03-05") == (Stage.STEADY, 3)
    assert live_at(entries, "2026-03-06") == (Stage.TRAINING, 3)
    assert live_at(entries, "2027-01-01") == (Stage.TRAINING, 2)
    came = let_in(entries_until(entries, parse_instant("2026-03-04")), DATASET)
    assert came is not None
    assert (came.sequence, came.decision.actor) == (3, "ada")


def test_a_clock_that_was_set_back_does_not_tear_the_chain_of_decisions(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    climbed(log)
    entries = dated(log.entries(), [1, 4, 2, 5])
    assert live_at(entries, "2026-03-02") == (Stage.EDGE, 3)
    assert live_at(entries, "2026-03-01") == (Stage.PILOT, 1)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "01.03.2026"])
def test_a_date_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"--at: .* is no date; write 2026-03-01"):
        parse_instant(text)


def test_the_only_dataset_needs_no_name_and_a_choice_does(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    with pytest.raises(InputError, match="the release log is empty"):
        only_dataset(log.entries())
    started(log)
    assert only_dataset(log.entries()) == DATASET
    started(log, "etth1")
    with pytest.raises(InputError, match="say which dataset: etth1, flights"):
        only_dataset(log.entries())


# The audit ------------------------------------------------------------------------------------------


def test_an_audit_of_a_whole_log_says_what_it_rests_on(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    climbed(log)
    found = audit(log, None)
    assert (found.num_entries, found.head, len(found.keys)) == (4, log.entries()[-1].hash, 1)
    assert found.datasets[DATASET].champion == 3
    assert (found.notes, found.compared_with_registry) == ((), False)
    assert audit(log, None, found.head[:8]) == found


def cut(log: ReleaseLog, kept: int) -> ReleaseLog:
    assert isinstance(log.store, FileStore)
    path = log.store.path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    return log


def test_a_cut_tail_is_found_by_a_head_that_was_noted_elsewhere_and_not_without_one(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    climbed(log)
    noted = audit(log, None).head
    cut(log, 3)
    assert audit(log, None).num_entries == 3  # three whole entries tell nothing of a fourth
    with pytest.raises(
        InputError, match=r"--head: .* holds no such entry: its end was cut; restore a backup"
    ):
        audit(log, None, noted)
    with pytest.raises(InputError, match="--head: abc: give at least 8 digits"):
        audit(log, None, "abc")


def test_a_cut_tail_is_found_by_what_mlflow_has_seen(tmp_path: Path, tracker: Tracker) -> None:
    dataset, log = "audited", log_in(tmp_path)
    register_versions(tracker, dataset)
    climbed(log, dataset)
    reconcile(log, tracker)
    assert audit(log, tracker).compared_with_registry
    cut(log, 2)
    with pytest.raises(InputError, match=r"the registry has seen release .*, which the release log has not"):
        audit(log, tracker)
    cut(log, 0)
    with pytest.raises(InputError, match=f"MLflow has seen releases of .*{dataset}.*; restore a backup"):
        audit(log, tracker)


def test_a_dataset_that_the_log_lost_is_told_from_another_installations(
    tmp_path: Path, tracker: Tracker
) -> None:
    ours, theirs = log_in(tmp_path / "ours"), log_in(tmp_path / "theirs")
    for log, dataset in ((ours, "audited_a"), (theirs, "audited_b")):
        register_versions(tracker, dataset)
        climbed(log, dataset)
        reconcile(log, tracker)
    assert any("MLflow knows releases of audited_b" in note for note in audit(ours, tracker).notes)
    climbed(cut(ours, 0), "audited_c")  # begun anew with the same key
    with pytest.raises(InputError, match="MLflow has seen releases of audited_a, and the release log holds"):
        audit(ours, tracker)


def test_an_illegal_move_is_found_even_where_its_signature_is_good(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    state = started(log)
    jump = Decision.model_validate(
        log.entries()[0].decision.model_dump()
        | {"action": "demote", "from_stage": "steady", "to_stage": "edge", "outcome": None}
    )
    log.append(jump, state.head)
    with pytest.raises(InputError, match="demote from steady to edge of version 1 is no legal move"):
        audit(log, None)


def test_a_clock_that_was_set_back_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import release_log

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(days=1)

    log = log_in(tmp_path)
    state = climbed(log)
    monkeypatch.setattr(release_log, "datetime", Yesterday)
    rollback(log, state, ADA, "slow")
    assert audit(log, None).notes == ("entry 5 is dated before entry 4: a clock was set back",)


# Formats --------------------------------------------------------------------------------------------

OLD = Path(__file__).parent / "release_log_format_1"
"""A log written before formats were numbered, with the public key that verifies it."""


def test_a_log_of_the_first_format_is_still_believed_and_goes_on(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    (tmp_path / "keys").mkdir()
    for path in OLD.iterdir():
        place = tmp_path if path.suffix == ".jsonl" else tmp_path / "keys"
        (place / path.name).write_bytes(path.read_bytes())
    entries = log.entries()
    assert [entry.format for entry in entries] == [1] * len(entries)
    state = replay(entries, DATASET)
    assert (state.stage, state.champion) == (Stage.TRAINING, 2)
    rollback(log, state, ADA, "slow")
    assert [entry.format for entry in log.entries()] == [*[1] * len(entries), FORMAT]


def test_an_entry_of_a_newer_format_is_refused_by_that_name(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    started(log)
    assert isinstance(log.store, FileStore)
    content = json.loads(log.store.path.read_text())
    newer = content | {"format": FORMAT + 1, "weather": "fine"}
    log.store.path.write_text(json.dumps(newer, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(InputError, match=rf"line 1: written by a newer dankai .format {FORMAT + 1}"):
        log.entries()
