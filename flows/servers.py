"""The server that Prefect starts for a flow when none was named: not to be left behind by a kill -9."""

import os
from typing import TYPE_CHECKING

from pipelines.fingerprint import process_is_alive, process_tags

if TYPE_CHECKING:
    import psutil

OWNER = "DANKAI_PROCESS"  # handed down to the server: id and starting time of the process that started it


def stop_orphans() -> None:
    """End servers of this installation whose own process died, and mark those started from here as ours."""
    import psutil

    for process in psutil.process_iter():
        owner = _owner(process)
        if owner and not process_is_alive(owner):
            process.terminate()
    mine = process_tags()
    os.environ[OWNER] = f"{mine['process.id']} {mine['process.started']}"


def _owner(process: "psutil.Process") -> dict[str, str] | None:
    """Tags of the process that started this one, if it is a server that Prefect started with our database."""
    import psutil

    try:
        environ = process.environ()
    except (psutil.Error, OSError):
        return None
    is_ours = environ.get("PREFECT_HOME") == os.environ.get("PREFECT_HOME")
    if not is_ours or OWNER not in environ or "PREFECT__SERVER_EPHEMERAL" not in environ:
        return None
    number, started = environ[OWNER].split()
    return {"process.id": number, "process.started": started}
