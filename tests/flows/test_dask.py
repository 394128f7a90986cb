"""Scoring and validation on two workers give what one process gives, also when a worker dies halfway."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dask import spread_of
from pipelines.settings import load_settings
from tests.tiny_rollout import ROOT, wait_for_server
from validation.errors import InputError

HAS_DASK = importlib.util.find_spec("prefect_dask") is not None


@pytest.mark.operations
@pytest.mark.skipif(not HAS_DASK, reason="prefect-dask is not installed here: pip install 'dankai[fan-out]'")
def test_a_worker_killed_halfway_costs_no_row_and_doubles_none(prefect_server: str, tmp_path: Path) -> None:
    wait_for_server(prefect_server)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    home = str(tmp_path / "prefect")
    environ = {**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_HOME": home, "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.flows.dask_with_a_kill", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["score_pieces"] > 4
    assert found["validate_pieces"] == 6
    assert found["same_scores"]
    assert found["differs"] == []
    assert found["same_rows_aside"]
    assert len(found["docs"]) == 6
    assert not found["left_over"]


def test_without_the_setting_everything_is_done_here() -> None:
    assert spread_of(load_settings({})) is None


@pytest.mark.parametrize("value", ["zero", "0", "http://host:80", "-2"])
def test_a_setting_that_names_no_workers_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"DANKAI_DASK: .* is no scheduler's address"):
        load_settings({"DANKAI_DASK": value})


def test_workers_need_the_package_and_a_server_to_report_to() -> None:
    missing = "needs the package prefect-dask" if not HAS_DASK else "need a Prefect server"
    with pytest.raises(InputError, match=rf"DANKAI_DASK: .*{missing}"):
        spread_of(load_settings({"DANKAI_DASK": "2"}))
