"""`dankai ui`: MLflow's own pages over what was tracked here."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.tiny_rollout import dankai, free_port

START_SECONDS = 40


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.read() == b"OK"
    except OSError:
        return False


@pytest.mark.timeout(90)
def test_it_serves_a_fresh_home_and_ends_with_sigterm(tmp_path: Path) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("dankai")), "ui", "--port", str(port)]
    environ = {**os.environ, "DANKAI_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": ""}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not healthy(address):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        server.terminate()
        server.wait(15)
    finally:
        server.kill()
    assert f"MLflow UI: {address}" in (tmp_path / "log").read_text()
    deadline = time.monotonic() + 10
    while healthy(address):
        assert time.monotonic() < deadline, "what it started goes on answering"
        time.sleep(0.1)


def test_where_a_server_tracks_its_address_is_told_without_the_password(tmp_path: Path) -> None:
    told = dankai(
        "ui", home=tmp_path / "home", MLFLOW_TRACKING_URI="https://ada:hidden@tracking.example:8443"
    )
    assert (told.code, told.err) == (0, "")
    assert told.out == "MLflow UI: https://ada:***@tracking.example:8443\n"
    assert not (tmp_path / "home").exists()
