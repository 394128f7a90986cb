"""kill -9 at every write of a release: never two champions, never none, and the next start puts it right."""

import signal
from typing import Any

import pytest

from pipelines.reconciliation import reconcile
from pipelines.registry import registered_name
from pipelines.rollout import current_state
from tests.faults.back_ends import BackEnd, host
from tests.faults.release_host import log_for

MOVES = ("approve", pytest.param("rollback", marks=pytest.mark.operations))
"""Those that write most; approving also promotes. tests/benchmarks/release_crashes.py tries every move."""


def check_crash(back_end: BackEnd, crash: dict[str, Any]) -> None:
    """What holds after one child died, before and after the next start."""
    dataset, tracker = crash["dataset"], back_end.tracker
    log, model = log_for(back_end.place, dataset, str(back_end.settings.home)), registered_name(dataset)
    state = current_state(log, dataset)  # the log is whole
    live = tracker.aliases(model).get("champion")
    assert live in (crash["champion"], state.champion), crash
    assert state.champion is not None or crash["champion"] is None, crash
    reconcile(log, tracker)
    assert tracker.aliases(model) == state.aliases(), crash
    assert tracker.release_head(model) == state.head or not log.entries(), crash
    assert reconcile(log, tracker) == []


@pytest.mark.timeout(240)
@pytest.mark.parametrize("move", MOVES)
def test_kill_9_at_every_write_leaves_one_champion_and_is_put_right(back_end: BackEnd, move: str) -> None:
    crashes = host(back_end, "crash", move)
    assert {crash["status"] for crash in crashes} == {-signal.SIGKILL, 0}
    for crash in crashes:
        check_crash(back_end, crash)
    died = [crash for crash in crashes if crash["status"]]
    assert len(died) >= 6, died  # the line or row, its end, and at least two writes in the registry
    [survived] = [crash for crash in crashes if not crash["status"]]
    log = log_for(back_end.place, survived["dataset"], str(back_end.settings.home))
    assert current_state(log, survived["dataset"]).aliases() != survived["aliases"]
