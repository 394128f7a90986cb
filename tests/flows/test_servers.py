"""The server that Prefect starts for one flow ends with it, sooner or later."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.servers import OWNER, stop_orphans
from pipelines.fingerprint import process_tags


def start(home: Path, owner: str) -> "subprocess.Popen[bytes]":
    """Something that looks like a server started for the database in `home`."""
    mark = {"PREFECT_HOME": str(home), "PREFECT__SERVER_EPHEMERAL": "1", OWNER: owner}
    command = [sys.executable, "-c", "print(flush=True); input()"]
    process = subprocess.Popen(
        command, env={**os.environ, **mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_only_servers_of_this_installation_whose_process_died_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "ours"))
    monkeypatch.setenv(OWNER, "")
    mine = process_tags()
    alive = f"{mine['process.id']} {mine['process.started']}"
    dead = f"{mine['process.id']} 1.00"  # the id was used again by a later process
    ended = start(tmp_path / "ours", dead)
    spared = [start(tmp_path / "ours", alive), start(tmp_path / "theirs", dead)]
    stop_orphans()
    try:
        assert ended.wait(10) == -15
        assert [process.poll() for process in spared] == [None, None]
        assert os.environ[OWNER] == alive
    finally:
        for process in (ended, *spared):
            process.communicate()
