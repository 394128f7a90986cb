"""Makes the work pool, the deployments and the automations known: `python -m flows.deployments FILE`.

FILE is a prefect.yaml. Done again, it changes what changed and makes nothing twice.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from flows.worker import POOL

if TYPE_CHECKING:
    from prefect.automations import Automation

ROOT = Path(__file__).parents[1]
HEARTBEAT_S = 30
LOST = "dankai: runs that went silent"


def deploy(file: Path) -> None:
    """Raises CalledProcessError, its output shown, where Prefect refuses the file."""
    make_pool()
    programs = Path(sys.executable).parent
    command = [str(programs / "prefect"), "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    subprocess.run(command, check=True, cwd=ROOT)  # its entry points, and so its runs, start there
    put(watch_over_runs())


def make_pool() -> None:
    """The work pool of the process workers."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            return


def watch_over_runs() -> "Automation":
    """A run whose heartbeat stops, because its machine is gone, counts as crashed and frees its slot."""
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture

    ends = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")}
    heartbeat = "prefect.flow-run.heartbeat"
    trigger = EventTrigger(
        after={heartbeat},
        expect={heartbeat, *ends},
        match={"prefect.resource.id": "prefect.flow-run.*"},  # type: ignore[arg-type]  # Prefect parses it
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=4 * HEARTBEAT_S),
    )
    why = "No heartbeat: its process or its machine is gone"
    crashed = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=why, force=False)
    return Automation(name=LOST, trigger=trigger, actions=[crashed])


def put(automation: "Automation") -> None:
    """Create it, or make the one of its name the same."""
    from prefect.automations import Automation

    try:
        known = Automation.read(name=automation.name)
    except ValueError:
        automation.create()
        return
    automation.id = known.id  # type: ignore[union-attr]  # Prefect types it as if it were awaited
    automation.update()


def main() -> None:
    from pipelines.settings import load_settings, quiet_environment

    quiet_environment(load_settings())
    os.environ["PREFECT_CLI_WRAP_LINES"] = "false"
    deploy(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
