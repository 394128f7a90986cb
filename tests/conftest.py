"""What holds for every test: telemetry off and no socket beyond loopback, child processes included.

And what all workers of a parallel run share: whoever needs it first starts it for all.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.files import exclusive_lock
from pipelines.settings import QUIET

if TYPE_CHECKING:
    from tests.tiny_rollout import Preloaded

_ROOT = Path(__file__).parents[1]
_GUARD = _ROOT / "tests" / "offline" / "sitecustomize.py"
# Workers of a parallel run inherit the variable, so that all note their attempts in one place.
_ATTEMPTS = Path(
    os.environ.setdefault(
        "DANKAI_TEST_NETWORK_ATTEMPTS", f"{tempfile.mkdtemp(prefix='dankai-tests-')}/network-attempts"
    )
)
# All of them hold this pipe open. What is started for all reads from it, and so ends with the last of them,
# however that comes about.
_HELD_OPEN = _ATTEMPTS.with_name("held-open")
with suppress(FileExistsError):
    os.mkfifo(_HELD_OPEN)
os.open(_HELD_OPEN, os.O_RDWR)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_GUARD.parent), os.environ.get("PYTHONPATH")]))


def _install_guard() -> None:
    spec = importlib.util.spec_from_file_location("offline_guard", _GUARD)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


_install_guard()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the whole run when anything tried to leave the machine, even if it swallowed the refusal."""
    if _ATTEMPTS.exists():
        print(f"\nSomething tried to reach the network:\n{_ATTEMPTS.read_text()}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_LONGEST = (
    "end_to_end/test_rollout.py",
    "faults/test_stopped.py",
    "end_to_end/test_approval.py",
    "pipelines/serving/test_serve.py",
    "faults/test_release_crashes.py",
    "end_to_end/test_servers.py",
    "pipelines/test_budgets.py",
    "pipelines/test_retraining.py",
    "pipelines/test_gate_commands.py",
    "pipelines/test_release.py",
    "pipelines/test_training.py",
    "browser/test_report.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that is begun last keeps one worker busy and the others idle."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(_ROOT / "tests").as_posix()
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    default = _ROOT / "../shared/data"
    folder = Path(os.environ.get("DANKAI_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(
            f"real data absent: no folder {folder.name!r} beside the repository and DANKAI_DATA is not set"
        )
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def prefect_server(shared_folder: Path) -> str:
    """Address of a real Prefect server's API. It migrates its database while the first test prepares."""
    from tests.tiny_rollout import free_port

    home = shared_folder / "prefect"
    with exclusive_lock(shared_folder / "prefect.lock"):
        if not home.exists():
            home.mkdir()
            port = str(free_port())
            command = [_installed("prefect"), "server", "start", "--host", "127.0.0.1", "--port", port]
            _start_for_all(["flows.guard", *command], {**QUIET, "PREFECT_HOME": str(home)}, home / "log")
            (home / "address").write_text(f"http://127.0.0.1:{port}/api")
    return (home / "address").read_text()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a real PostgreSQL server; the test is skipped where none is installed."""
    from tests import postgres as real

    if why := real.lacking():
        pytest.skip(why)
    with real.server() as address:
        yield address


@pytest.fixture(scope="session")
def preloaded(prefect_server: str, shared_folder: Path) -> "Preloaded":
    """Runs `dankai` against that server without paying for the imports each time."""
    from tests.tiny_rollout import Preloaded, wait_for_server

    home = shared_folder / "preloaded"
    environ = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": prefect_server,
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # as the command sets it before it imports Prefect
        "MLFLOW_TRACKING_URI": "",
        "DANKAI_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with exclusive_lock(shared_folder / "preloaded.lock"):
        if not home.exists():
            home.mkdir()
            _start_for_all(["tests.preloaded", str(home / "door")], environ, home / "log")
    wait_for_server(prefect_server)
    return Preloaded(home / "door")


def _start_for_all(command: list[str], environ: Mapping[str, str], log: Path) -> None:
    """Start `python -m COMMAND`, which ends when its standard input does."""
    with log.open("wb") as output, _HELD_OPEN.open("rb") as until_all_ended:
        subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **environ},
            stdin=until_all_ended,
            stdout=output,
            stderr=output,
            cwd=_ROOT,
        )


def _installed(command: str) -> str:
    return str(Path(sys.executable).with_name(command))
