"""The commands on the release log: what they say, and that what is wrong changes nothing and exits with 2."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import _answer
from flows.cli import dankai as command_line
from pipelines.decisions import apply_verdict, challenge, terms_of
from pipelines.release_log import ReleaseLog
from pipelines.rollout import current_state
from pipelines.settings import load_settings
from tests.release_cases import ADA, DATASET, MONITOR, climbed, started, verdict, version
from tests.tiny_rollout import dankai, write_dataset
from validation.policy import Approval

Run = Callable[..., tuple[int, str, str]]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Exit status, output and errors of a command in this process."""
    monkeypatch.setenv("DANKAI_HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    monkeypatch.setattr("flows.commands.release._reconcile_in_background", lambda settings: None)

    def ran(*words: str) -> tuple[int, str, str]:
        code = _answer(lambda **kept: command_line.main(list(words), **kept))
        said = capfd.readouterr()
        return code, said.out, said.err

    return ran


def log_of(home: Path) -> ReleaseLog:
    return ReleaseLog.of(load_settings({"DANKAI_HOME": str(home)}))


def content(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("history", "etth1"), "the release log: unknown dataset 'etth1': known are flights"),
        (("history", "--at", "soon"), "--at: 'soon' is no date"),
        (("audit", "verify"), f"{NOWHERE} does not answer"),
        (("audit", "verify", "--head", "00000000", "--log-only"), "holds no such entry: its end was cut"),
        (("approve", "0000beef", "--as", "Ada", "--reason", "x"), "0000beef: is no request; waiting for"),
        (("rollback", "flihgts", "--reason", "x"), "unknown dataset 'flihgts': did you mean 'flights'"),
        (("rollback", "--reason", "  "), "rollback needs a reason; say why"),
        (("rollback", "--reason", "x", "--as", "\x1b[31m"), "is no name: give one line"),
        (("demote", "flights", "--to", "edge", "--reason", " "), "demote needs a reason"),
        (("demote", "etth1", "--to", "edge", "--reason", "x"), "unknown dataset 'etth1'"),
        (("reconcile",), f"{NOWHERE} does not answer"),
        (("approvals",), "PREFECT_API_URL: not set"),
        (("history", "--at", ""), "--at: '' is no date"),
    ],
)
def test_what_is_wrong_is_one_line_and_changes_nothing(
    words: tuple[str, ...], said: str, home: Path, run: Run
) -> None:
    climbed(ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})))
    before = content(home)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert line.startswith("dankai: ")
    assert said in line
    assert "\x1b" not in line
    after = content(home)
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    "words",
    [
        ("history",),
        ("audit", "verify", "--log-only"),
        ("audit", "verify"),
        ("approve", "0000beef", "--as", "Ada", "--reason", "x"),
        ("rollback", "--reason", "x"),
        ("demote", "flights", "--to", "edge", "--reason", "x"),
        ("reconcile",),
    ],
)
def test_a_corrupt_log_stops_every_command_at_its_line(words: tuple[str, ...], home: Path, run: Run) -> None:
    climbed(ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})))
    path = home / "release_log.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"version":2', b'"version":7', 1))
    before = content(home)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    assert "release_log.jsonl: line 2: its content does not fit its hash" in line
    assert "restore a backup" in line
    assert content(home) == before


def test_an_expired_request_is_refused_as_that_and_shown_as_that(home: Path, run: Run) -> None:
    log = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)}))
    past = terms_of(Approval(approvers=1, trainer_may_approve=True, expires_hours=1e-9), "cleo")
    past = past.model_copy(update={"expires": "2026-01-01T00:00:00+00:00"})
    state = apply_verdict(log, started(log), version(2), verdict("pilot", 2), ADA, past)
    assert state.pending is not None
    code, out, err = run("approve", state.pending.id, "--as", "Bob", "--reason", "x")
    assert (code, out) == (2, "")
    assert "this request for flights expired at 2026-01-01T00:00:00+00:00; run the rollout again" in err
    assert "expired at 2026-01-01T00:00:00+00:00: run the rollout again" in run("history")[1]
    assert len(log.entries()) == 2


def test_an_address_without_a_host_is_told_at_once(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbed(ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://")
    code, _, err = run("audit", "verify")
    assert (code, "does not answer (it names no host)" in err) == (2, True)


def test_a_prefect_server_that_does_not_answer_is_one_line(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{NOWHERE}/api")
    dataset = write_dataset(tmp_path)
    for words in (("approvals",), ("rollout", "run", str(dataset), "--bootstrap", "first")):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        [line] = err.splitlines()
        assert f"PREFECT_API_URL: {NOWHERE}/api does not answer" in line
        assert "start the server or correct the address" in line
    assert not home.exists()


def test_where_nothing_was_ever_released_nothing_is_made(home: Path, run: Run) -> None:
    assert run("history") == (0, "The release log is empty: nothing was ever let in\n", "")
    for words in (("rollback",), ("demote", "flights", "--to", "edge")):
        code, _, err = run(*words, "--reason", "x")
        assert code == 2
        assert "the release log is empty; see: dankai rollout run --help" in err
    assert not home.exists()


def test_an_illegal_move_is_refused(home: Path, run: Run) -> None:
    started(ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})))
    code, _, err = run("rollback", "--reason", "x")
    assert code == 2
    assert "flights: there is no earlier release to go back to: version 1 is the first" in err
    code, _, err = run("demote", "flights", "--to", "edge", "--reason", "x")
    assert code == 2
    assert "demote from pilot to edge of version 1 is no legal move: a demotion leads to a lower" in err
    assert len(log_of(home).entries()) == 1


def test_history_shows_who_let_what_in_and_obeys_no_text(home: Path, run: Run) -> None:
    log = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)}))
    challenge(log, climbed(log), version(4), ADA, "drift\n[bold]in[/bold] \x1b[31mdep_delay")
    code, out, err = run("history", "flights")
    assert (code, err) == (0, "")
    assert "flights: version 3 is live at stage steady; last green: version 2; challenger: version 4" in out
    assert "by promote of ada (ada): every required check of the edge gate passed" in out
    assert "checkpoint weights 3, snapshot data, verdict" in out
    assert "\x1b" not in out
    assert "[bold]in[/bold]" in "".join(out.split())


def test_history_for_programs(home: Path, run: Run) -> None:
    log = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)}))
    state = climbed(log)
    answer: dict[str, Any] = json.loads(run("history", "--json")[1])
    assert answer["datasets"]["flights"]["releases"][-1]["champion"] == state.champion
    assert [entry["sequence"] for entry in answer["entries"]] == [1, 2, 3, 4]
    long_ago = json.loads(run("history", "--json", "--at", "2001-01-01")[1])
    assert (long_ago["datasets"], long_ago["entries"]) == ({"flights": long_ago["datasets"]["flights"]}, [])
    assert long_ago["datasets"]["flights"]["releases"] == []


def test_an_audit_says_what_it_looked_at(home: Path, run: Run) -> None:
    log = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)}))
    climbed(log)
    code, out, _ = run("audit", "verify", "--log-only", "--head", log.entries()[1].hash)
    assert code == 0
    assert "4 entries hold" in out
    assert "MLflow was not asked" in out
    assert log.entries()[-1].hash in out


def test_demote_and_rollback_by_name(home: Path, run: Run) -> None:
    climbed(ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)})))
    code, out, _ = run("demote", "flights", "--to", "edge", "--reason", "new device", "--as", "Ada")
    assert code == 0
    assert "flights: stage edge, version 3 is live" in out
    code, out, _ = run("rollback", "--reason", "p99", "--as", "Ada")
    assert (code, "flights: stage training, version 2 is live" in out) == (0, True)
    assert [entry.decision.actor for entry in log_of(home).entries()[4:]] == ["Ada", "Ada"]


def test_a_rollback_takes_under_two_seconds_with_mlflow_down(home: Path) -> None:
    """By its own processor time, as a busy machine must not fail it; and without waiting for a timeout."""
    log = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)}))
    climbed(log)
    before, began = _processor_time(), time.monotonic()
    ended = dankai("rollback", "--reason", "it breached its bound", home=home, MLFLOW_TRACKING_URI=NOWHERE)
    seconds, waited = _processor_time() - before, time.monotonic() - began
    assert ended.code == 0, ended.err
    assert current_state(log, DATASET).champion == 2
    assert seconds < 2
    assert waited < 10
    report = home / "reconcile.log"
    while "does not answer" not in report.read_text():  # in the background, later
        assert time.monotonic() - began < 100
        time.sleep(0.1)


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_an_alert_stands_in_the_history_until_something_else_is_live(home: Path, run: Run) -> None:
    from pipelines.monitoring import _alert

    settings = load_settings({"DANKAI_HOME": str(home)})
    log = ReleaseLog.open(settings)
    _alert(settings, started(log), "error_rate broke its \x1b[31mbound")
    code, out, _ = run("history")
    assert code == 0
    [alert] = [line for line in out.splitlines() if "ALERT" in line]
    assert "version 1: error_rate broke its \\x1b[31mbound; there is no earlier release" in alert
    assert json.loads(run("history", "--json")[1])["alerts"]["flights"]["version"] == 1
    assert "ALERT" not in run("history", "--at", "2001-01-01")[1]
    apply_verdict(log, current_state(log, DATASET), version(2), verdict("pilot", 2), ADA)
    assert "ALERT" not in run("history")[1]


def test_the_monitor_is_shown_as_what_it_is(home: Path, run: Run) -> None:
    from pipelines.decisions import rollback

    log = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)}))
    rollback(log, climbed(log), MONITOR, "error_rate broke its bound in 3 windows")
    assert "by rollback of monitor (automatic): error_rate broke its bound" in run("history")[1]


def test_status_is_one_screen_of_what_is_live_and_why(home: Path, run: Run) -> None:
    log = ReleaseLog.open(load_settings({"DANKAI_HOME": str(home)}))
    climbed(log)
    code, out, _ = run("status")
    assert code == 0
    for words in (
        "version 3 is live at stage steady",
        "way back",
        "version 2",
        "PASS: edge gate on version 3",
    ):
        assert words in out
    standing = json.loads(run("status", "--json")[1])["datasets"][0]
    assert (standing["dataset"], standing["live"], standing["stage"]) == ("flights", 3, "steady")
