"""What holds for every test: telemetry off and no socket beyond loopback, child processes included."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.settings import QUIET

if TYPE_CHECKING:
    from tests.tiny_rollout import Preloaded

_GUARD = Path(__file__).parent / "offline" / "sitecustomize.py"
# Workers of a parallel run inherit the variable, so that all note their attempts in one place.
_ATTEMPTS = Path(
    os.environ.setdefault(
        "DANKAI_TEST_NETWORK_ATTEMPTS", f"{tempfile.mkdtemp(prefix='dankai-tests-')}/network-attempts"
    )
)
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


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    default = Path(__file__).parents[1] / "../shared/data"
    folder = Path(os.environ.get("DANKAI_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(
            f"real data absent: no folder {folder.name!r} beside the repository and DANKAI_DATA is not set"
        )
    return folder


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Prefect server's API. It migrates its database while the first test prepares."""
    from tests.tiny_rollout import free_port, serving

    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    command = [_installed("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environ = {**QUIET, "PREFECT_HOME": str(home)}
    with serving(command, environ, home / "log"):
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Address of a real PostgreSQL server; the test is skipped where none is installed."""
    from tests import postgres as real

    if why := real.lacking():
        pytest.skip(why)
    with real.server() as address:
        yield address


@pytest.fixture(scope="session")
def preloaded(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Preloaded"]:
    """Runs `dankai` against that server without paying for the imports each time."""
    from tests.tiny_rollout import Preloaded, wait_for_server

    environ = {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect-client")),
        "PREFECT_API_URL": prefect_server,
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # as the command sets it before it imports Prefect
        "MLFLOW_TRACKING_URI": "",
        "DANKAI_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = Preloaded(environ)
    wait_for_server(prefect_server)
    yield process
    process.close()


def _installed(command: str) -> str:
    return str(Path(sys.executable).with_name(command))
