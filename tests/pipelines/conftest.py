"""One MLflow store for all tests of a session: a fresh database costs seconds."""

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipelines.registry import Tracker
from pipelines.settings import Settings, load_settings, quiet_environment

if TYPE_CHECKING:
    from pipelines.checkpoint import Checkpoint
    from pipelines.data.windows import Windows

OPEN_FOUR_TIMES = """
import os, sys
from pipelines.settings import *
settings = load_settings(); quiet_environment(settings)
import mlflow
from pipelines.registry import Tracker

children = []
for _ in range(4):  # one process pays for the imports, its children open the database
    children.append(os.fork())
    if children[-1] == 0:
        Tracker.open(settings)
        os._exit(0)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An installation of the tests' own; its database does not exist yet."""
    settings = load_settings({"DANKAI_HOME": str(tmp_path_factory.mktemp("store"))})
    quiet_environment(settings)
    return settings


@pytest.fixture(scope="session")
def first_openers(store: Settings) -> str:
    """What four processes that opened the fresh database at the same moment said and ended with."""
    environ = {**os.environ, "DANKAI_HOME": str(store.home), "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-c", OPEN_FOUR_TIMES]
    opened = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, timeout=110
    )
    return opened.stdout.strip()


@pytest.fixture(scope="session")
def tracker(store: Settings, first_openers: str) -> Tracker:
    """The shared store, migrated. Tests keep apart by dataset name."""
    return Tracker.open(store)


@pytest.fixture(scope="session")
def pump(tmp_path_factory: pytest.TempPathFactory) -> "Windows":
    """Windows over the tiny dataset of tests.tiny_rollout."""
    from pipelines.data.spec import load_spec
    from tests.tiny_rollout import windows_of, write_dataset

    folder = tmp_path_factory.mktemp("pump")
    return windows_of(load_spec(write_dataset(folder)), folder)


@pytest.fixture(scope="session")
def trained(pump: "Windows", tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Checkpoint]":
    """A dense model, a selector fitted to it and a sparse model, all tiny."""
    from tests.tiny_rollout import train_tiny

    folder = tmp_path_factory.mktemp("trained")
    dense, _ = train_tiny(pump, "dense", folder / "dense")
    selector, _ = train_tiny(pump, "selector", folder / "selector", warm_start=dense)
    sparse, _ = train_tiny(pump, "sparse", folder / "sparse")
    return {"dense": dense, "selector": selector, "sparse": sparse}
