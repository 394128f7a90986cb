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
_NAME = "prefect.worker.name"  # label that Prefect's worker gives its runs


def settle_lost_runs(worker: str) -> None:
    """Mark the lost runs as crashed, which frees their slots, and start each anew a few times at most.

    Finished steps are kept (pipelines.steps), so that a run goes on rather than begins again.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for run in _unfinished(client):
            if _is_lost(run, worker):
                _settle(client, run)


def _is_lost(run: "FlowRun", worker: str) -> bool:
    """Of this worker; or taken a while ago by one that died before it could sign for it."""
    assert run.state is not None
    age = datetime.now(UTC) - run.state.timestamp
    return run.labels[_NAME] == worker if _NAME in run.labels else age > UNSIGNED


def _unfinished(client: "SyncPrefectClient") -> "list[FlowRun]":
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import StateType

    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )


def _settle(client: "SyncPrefectClient", run: "FlowRun") -> None:
    from prefect.states import AwaitingRetry, Cancelled, Crashed

    assert run.state is not None
    if run.state.is_cancelling():
        client.set_flow_run_state(run.id, Cancelled(message="Its worker died while it was being cancelled"))
        return
    client.set_flow_run_state(run.id, Crashed(message="Its worker died"))
    if run.run_count < MAX_STARTS:
        again = AwaitingRetry(message=f"Goes on after its worker died (start {run.run_count + 1})")
        client.set_flow_run_state(run.id, again)


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
