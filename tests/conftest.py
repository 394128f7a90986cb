"""What holds for every test: telemetry off and no socket beyond loopback, child processes included."""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

_GUARD = Path(__file__).parent / "offline" / "sitecustomize.py"
_ATTEMPTS = Path(tempfile.mkdtemp(prefix="dankai-tests-")) / "network-attempts"

os.environ["DANKAI_TEST_NETWORK_ATTEMPTS"] = str(_ATTEMPTS)
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
