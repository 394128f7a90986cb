"""Both back ends for releases: a file with SQLite, and PostgreSQL for the log and for MLflow."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.registry import Tracker
from pipelines.settings import Settings, load_settings, quiet_environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class BackEnd:
    """Where releases are kept: `place` is a folder for log files, or a database's address."""

    settings: Settings
    tracker: Tracker
    place: str


def open_back_end(home: Path, database: str = "") -> BackEnd:
    """Log files and SQLite in `home`, or both stores in the database at this address; migrated."""
    settings = load_settings({"DANKAI_HOME": str(home), "MLFLOW_TRACKING_URI": database})
    quiet_environment(settings)
    logs = home / "logs"
    logs.mkdir(parents=True)
    return BackEnd(settings, Tracker.open(settings), database or str(logs))


def host(back_end: BackEnd, what: str, *arguments: object) -> list[dict[str, Any]]:
    """What tests.faults.release_host answers."""
    settings = back_end.settings
    command = [sys.executable, "-m", "tests.faults.release_host", what, str(settings.home)]
    command += [settings.tracking_uri, back_end.place, *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
