"""`dankai watch` and `dankai status`: what a run writes on its way, and where everything stands."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import dankai
from flows.watching import progress_text, seen
from pipelines import journal
from pipelines.journal import Journal, is_running, lines, newest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANKAI_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def reported(home: Path, dataset: str = "pump") -> Journal:
    """A journal as a run leaves it, up to the middle of a training."""
    told: list[str] = []
    written = Journal(home, dataset, lambda what, done, total: told.append(what))
    written("taking the snapshot", 0, 1)
    written("taking the snapshot", 1, 1)
    written("training dense (seed 0)", 1, 360)
    written.note(losses={"train_loss": 0.61, "validation_loss": 0.58}, whose="dense (seed 0)")
    written.note(stage="pilot", verdict="HOLD", reasons=["too few\nwindows"])
    assert told == ["taking the snapshot", "taking the snapshot", "training dense (seed 0)"]
    return written


def test_a_run_writes_down_what_it_reports(home: Path) -> None:
    path = reported(home).path
    assert newest(home) == newest(home, "pump") == path
    assert newest(home, "other") is None
    first, *_ = lines(path)
    assert first["dataset"] == "pump"
    assert is_running(first)
    found = seen(lines(path))
    assert [line["what"] for line in found.now] == ["training dense (seed 0)"]
    assert found.losses["validation_loss"] == 0.58
    assert found.peak_bytes > 2**20


def test_many_reports_are_few_lines_and_old_journals_go(home: Path) -> None:
    written = Journal(home, "pump", lambda *_: None)
    for done in range(1, 1001):
        written("training", done, 1000)
    assert len(list(lines(written.path))) == 2  # the first and the last: a second has not passed
    for number in range(journal._KEPT + 5):
        (home / "journals" / f"2020{number:04}-pump-1.jsonl").write_text("")
    Journal(home, "other", lambda *_: None).note(sentence="done")
    assert len(list((home / "journals").iterdir())) == journal._KEPT


def test_a_full_disk_does_not_stop_the_run(home: Path) -> None:
    (home / "journals").write_text("in the way")
    Journal(home, "pump", lambda *_: None)("training", 1, 2)


def test_time_left_is_what_the_rest_takes_at_this_pace() -> None:
    began = {"time": "2026-11-26T05:00:00+00:00", "what": "training", "done": 10, "total": 360}
    line = {**began, "time": "2026-11-26T05:01:00+00:00", "done": 130, "began": began}
    assert progress_text(line) == "training: 130/360 in 1 min 0 s, about 1 min 55 s left"


def test_watch_says_once_where_a_run_stands(home: Path) -> None:
    reported(home)
    told = CliRunner().invoke(dankai, ["watch", "--once"])
    assert told.exit_code == 0, told.exception
    for words in ("pump: running", "pilot gate", "HOLD: too few", "training dense (seed 0): 1/360"):
        assert words in told.output
    assert "validation loss 0.58" in told.output
    assert "MiB" in told.output
    parsed = json.loads(CliRunner().invoke(dankai, ["watch", "--json"]).output)
    assert parsed["running"]
    assert parsed["verdicts"] == {"pilot": "HOLD: too few\nwindows"}


RUN = """
import sys, time
from pathlib import Path
from pipelines.journal import Journal
journal = Journal(Path(sys.argv[1]), "pump", lambda *_: None)
journal("training", 1, 3)
sys.stdin.readline()
journal("training", 3, 3)
journal.note(sentence="Stage pilot is reached")
"""


def test_watch_follows_a_live_run_to_its_end_in_plain_lines(home: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", RUN, str(home)], stdin=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while newest(home) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command = [str(Path(sys.executable).with_name("dankai")), "watch"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert watch.stdout is not None
    assert "training: 1/3" in watch.stdout.readline()
    run.communicate("\n")
    rest, _ = watch.communicate(timeout=20)
    assert watch.returncode == 0
    assert "training: 3/3" in rest.splitlines()[0]
    assert rest.splitlines()[-1].endswith("Stage pilot is reached")
    assert "\x1b" not in rest


def test_where_nothing_ran_watch_and_status_say_how_to_begin(home: Path) -> None:
    told = CliRunner().invoke(dankai, ["watch"])
    assert "no run has begun here yet" in str(told.exception)
    told = CliRunner().invoke(dankai, ["status"])
    assert told.exit_code == 0
    assert "Start with: dankai demo" in told.output
    assert "PREFECT_API_URL names no server" in told.output


def test_status_says_what_runs_and_that_a_server_does_not_answer(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported(home)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    told = json.loads(CliRunner().invoke(dankai, ["status", "--json"]).output)
    assert told["running"].startswith("pump: training dense (seed 0): 1/360")
    assert "does not answer" in told["next"]
