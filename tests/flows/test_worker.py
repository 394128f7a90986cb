"""What a dead worker had in hand: its slots come free, and its runs go on, but not for ever."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from flows import worker
from flows.worker import POOL, settle_lost_runs

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient


LABEL = "prefect.worker.name"
Start = Callable[..., "UUID"]


@pytest.fixture(scope="module")
def client(prefect_server: str) -> Iterator["SyncPrefectClient"]:
    """A client of a real server, which in-process calls find too."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.deployments import make_pool
    from tests.tiny_rollout import wait_for_server

    wait_for_server(prefect_server)
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        make_pool()
        yield client


@pytest.fixture(scope="module")
def deployment(client: "SyncPrefectClient") -> "UUID":
    """One of which two runs may be at work at a time."""
    flow = client.create_flow_from_name("lost")
    return client.create_deployment(flow, "lost", work_pool_name=POOL, concurrency_limit=2)


@pytest.fixture
def start(client: "SyncPrefectClient", deployment: "UUID") -> Start:
    """A run that a worker of this name took and, unless only taken, started."""
    from prefect.states import Pending, Running

    def one(name: str = "", is_running: bool = True) -> "UUID":
        run = client.create_flow_run_from_deployment(deployment).id
        for state in (Pending(), Running()) if is_running else (Pending(),):
            client.set_flow_run_state(run, state)
        if name:
            client.update_flow_run_labels(run, {LABEL: name})
        return run

    return one


def slots(client: "SyncPrefectClient", deployment: "UUID") -> int:
    limit = client.read_deployment(deployment).global_concurrency_limit
    assert limit is not None
    return limit.active_slots


def states(client: "SyncPrefectClient", run: "UUID") -> list[tuple[str, str | None]]:
    """Names and messages of the run's states after it was started, in order."""
    found = sorted(client.read_flow_run_states(run), key=lambda state: state.timestamp)
    return [(str(state.name), state.message) for state in found[3:]]


def end(client: "SyncPrefectClient", *runs: "UUID") -> None:
    from prefect.states import Cancelled

    for run in runs:
        client.set_flow_run_state(run, Cancelled(), force=True)


def test_a_lost_run_is_marked_its_slot_comes_free_and_it_goes_on(
    client: "SyncPrefectClient", deployment: "UUID", start: Start
) -> None:
    lost, of_another = start("here"), start("elsewhere")
    assert slots(client, deployment) == 2
    settle_lost_runs("here")
    assert states(client, lost) == [
        ("Crashed", "Its worker died"),
        ("AwaitingRetry", "Goes on: its worker died (start 2)"),
    ]
    assert states(client, of_another) == []
    assert slots(client, deployment) == 1
    end(client, lost, of_another)


def test_one_that_was_taken_and_not_signed_for_is_lost_after_a_minute(
    client: "SyncPrefectClient", start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = start(is_running=False)
    settle_lost_runs("here")
    assert states(client, taken) == []
    monkeypatch.setattr(worker, "UNSIGNED", timedelta(0))
    settle_lost_runs("here")
    assert client.read_flow_run(taken).state_name == "AwaitingRetry"
    end(client, taken)


def test_what_was_stopped_goes_on_and_what_crashed_by_itself_does_not(
    client: "SyncPrefectClient", start: Start
) -> None:
    from prefect.states import Crashed

    stopped, crashed = start("here"), start("here")
    told = "Execution was aborted by a termination signal."
    client.set_flow_run_state(stopped, Crashed(message=told))
    client.set_flow_run_state(crashed, Crashed(message="Flow run infrastructure exited with status 137"))
    settle_lost_runs("here")
    assert client.read_flow_run(stopped).state_name == "AwaitingRetry"
    assert client.read_flow_run(crashed).state_name == "Crashed"
    end(client, stopped)


def test_a_run_that_loses_its_worker_again_and_again_stays_down(
    client: "SyncPrefectClient", start: Start
) -> None:
    from prefect.states import Pending, Running

    lost = start("here")
    for _ in range(worker.MAX_STARTS - 1):
        settle_lost_runs("here")
        assert client.read_flow_run(lost).state_name == "AwaitingRetry"
        for state in (Pending(), Running()):
            client.set_flow_run_state(lost, state, force=True)
    settle_lost_runs("here")
    final = client.read_flow_run(lost)
    assert (final.state_name, final.run_count) == ("Crashed", worker.MAX_STARTS)


def test_a_run_that_was_being_cancelled_is_cancelled(client: "SyncPrefectClient", start: Start) -> None:
    from prefect.states import Cancelling

    lost = start("here")
    client.set_flow_run_state(lost, Cancelling())
    settle_lost_runs("here")
    assert client.read_flow_run(lost).state_name == "Cancelled"
