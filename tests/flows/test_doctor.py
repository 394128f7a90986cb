"""`dankai doctor` says what is wrong around dankai, and what to do; it looks without touching."""

import json
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows import doctor
from flows.cli import dankai
from flows.doctor import Finding, examine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DANKAI_HOME", str(tmp_path / "home"))
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DANKAI_DATABASE_URL", "DANKAI_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def found(name: str) -> Finding:
    return next(each for each in examine() if each.name == name)


def test_a_sound_machine_is_examined_fast_and_nothing_is_made(home: Path) -> None:
    started = time.monotonic()
    ended = CliRunner().invoke(dankai, ["doctor", "--json"])
    assert time.monotonic() - started < 5  # on a busy machine; alone it takes half a second
    assert ended.exit_code == 0, ended.output
    names = {each["name"] for each in json.loads(ended.output)}
    assert names >= {"python", "packages", "gpu", "home", "disk", "keys", "prefect", "mlflow", "port 4200"}
    assert names >= {"release log", "telemetry", "time zone", "threads"}
    assert not home.exists()


def test_servers_that_do_not_answer_are_failures_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        port = silent.getsockname()[1]
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:hidden@127.0.0.1:9")
        started = time.monotonic()
        ended = CliRunner().invoke(dankai, ["doctor"])
        assert time.monotonic() - started < 6
    assert ended.exit_code == 2
    assert "start it (dankai up)" in ended.output
    assert "hidden" not in ended.output


def test_a_port_that_something_else_holds_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: ("Prefect", "api/health", "--prefect-port")})
        warned = found(f"port {port}")
    assert warned.state == "warn"
    assert warned.fix == "stop it, or: dankai up --prefect-port NUMBER"


def test_a_key_that_others_can_read_fails(home: Path) -> None:
    from pipelines.signing import load_key

    load_key(home / "keys")
    assert found("keys").state == "ok"
    (home / "keys" / "signing.key").chmod(0o644)
    failed = found("keys")
    assert failed.state == "fail"
    assert "run: chmod 600" in failed.said


def test_a_damaged_release_log_fails(home: Path) -> None:
    home.mkdir()
    (home / "release_log.jsonl").write_text("not an entry\n")
    assert found("release log").state == "fail"


def test_telemetry_that_somebody_switched_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "true")
    warned = found("telemetry")
    assert (warned.state, warned.fix) == ("warn", "export GX_ANALYTICS_ENABLED=false")


def test_too_many_threads_a_wrong_setting_and_another_version_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DANKAI_THREADS", "4096")
    assert found("threads").state == "warn"
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["click==0.1", "no-such-package==1"])
    packages = [each for each in examine() if each.name == "packages"]
    assert [each.state for each in packages] == ["fail", "warn"]
    assert "no-such-package" in packages[0].said
    monkeypatch.setenv("DANKAI_THREADS", "many")
    assert found("settings").state == "fail"


def test_no_room_and_no_right_to_write(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 2**20

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Full)
    assert found("disk").state == "fail"
    monkeypatch.setenv("DANKAI_HOME", "/proc/dankai")
    assert found("home").state == "fail"
