"""The worker: first settles the runs that its predecessor had when it died, then takes up work.

`python -m flows.worker NAME [QUEUE...]`, with PREFECT_API_URL. A name belongs to one worker at a time, and
`dankai up` ends a worker's runs together with it: whatever still counts as running under the name is lost.
"""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

POOL = "dankai"
MAX_STARTS = 3
"""A run that outlived no worker so often is likelier their murderer than their victim."""
UNSIGNED = timedelta(minutes=1)
STOPPED_WITHIN = timedelta(days=7)
_STOPPED = "Execution was aborted by a termination signal"  # Prefect's words
_NAME = "prefect.worker.name"  # label that Prefect's worker gives its runs


def settle_lost_runs(worker: str) -> None:
    """Mark what was lost with the worker of this name as crashed, which frees its slots, and let it go on.

    What was told to end, because everything was being stopped, goes on too. Finished steps are kept
    (pipelines.steps): a run goes on rather than begins again. MAX_STARTS times at most.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for run in _runs(client, "PENDING", "RUNNING", "CANCELLING"):
            if _is_lost(run, worker):
                _bury(client, run)
                _go_on(client, run, "its worker died")
        for run in _runs(client, "CRASHED", since=datetime.now(UTC) - STOPPED_WITHIN):
            assert run.state is not None
            if run.labels.get(_NAME) == worker and (run.state.message or "").startswith(_STOPPED):
                _go_on(client, run, "everything was stopped")


def _runs(client: "SyncPrefectClient", *types: str, since: datetime | None = None) -> "list[FlowRun]":
    """Runs of the pool in these states; with `since`, those that ended after it."""
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    states = filters.FlowRunFilterStateType(any_=[StateType(each) for each in types])
    ended = filters.FlowRunFilterEndTime(after_=since) if since else None  # type: ignore[arg-type]
    return client.read_flow_runs(
        flow_run_filter=filters.FlowRunFilter(state=filters.FlowRunFilterState(type=states), end_time=ended),
        work_pool_filter=filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[POOL])),
    )


def _is_lost(run: "FlowRun", worker: str) -> bool:
    """Of this worker; or taken a while ago by one that died before it could sign for it."""
    assert run.state is not None
    age = datetime.now(UTC) - run.state.timestamp
    return run.labels[_NAME] == worker if _NAME in run.labels else age > UNSIGNED


def _bury(client: "SyncPrefectClient", run: "FlowRun") -> None:
    from prefect.states import Cancelled, Crashed

    assert run.state is not None
    end = Cancelled if run.state.is_cancelling() else Crashed
    client.set_flow_run_state(run.id, end(message="Its worker died"))


def _go_on(client: "SyncPrefectClient", run: "FlowRun", why: str) -> None:
    from prefect.states import AwaitingRetry

    assert run.state is not None
    if run.run_count < MAX_STARTS and not run.state.is_cancelling():
        client.set_flow_run_state(
            run.id, AwaitingRetry(message=f"Goes on: {why} (start {run.run_count + 1})")
        )


def main() -> None:
    """Never returns: becomes Prefect's process worker."""
    name, *queues = sys.argv[1:]
    settle_lost_runs(name)
    programs = Path(sys.executable).parent
    os.environ["PATH"] = os.pathsep.join([str(programs), os.environ.get("PATH", "")])  # runs ask for `python`
    command = ["prefect", "worker", "start", "--type", "process", "--pool", POOL, "--name", name]
    command += ["--with-healthcheck", *(option for queue in queues for option in ("--work-queue", queue))]
    os.execvp(programs / "prefect", command)


if __name__ == "__main__":
    main()
