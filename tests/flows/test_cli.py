"""The command line answers at once, and shows people what they need."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import _answer
from tests.tiny_rollout import dankai

HEAVY = (
    "torch",
    "lightning",
    "mlflow",
    "prefect",
    "great_expectations",
    "pandas",
    "polars",
    "sklearn",
    "numpy",
)


def test_help_comes_in_under_half_a_second(tmp_path: Path) -> None:
    """Best of three: a busy machine may be slow once."""
    ended = [dankai("--help", home=tmp_path) for _ in range(3)]
    assert {each.code for each in ended} == {0}
    assert min(each.seconds for each in ended) < 0.5
    assert "dankai rollout run infra/datasets/" in ended[0].out


@pytest.mark.parametrize("module", ["flows.cli", "pipelines.settings", "pipelines.training_plan"])
def test_importing_what_the_command_line_starts_with_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        ("demo",),
        ("rollout",),
        ("rollout", "run"),
        ("ui",),
        ("budget",),
        ("explain",),
        ("monitor",),
        ("retrain",),
        ("replay",),
        ("labels",),
        ("bias",),
        ("report",),
        ("bench", "drift"),
    ],
)
def test_every_command_explains_itself(command: tuple[str, ...], tmp_path: Path) -> None:
    ended = dankai(*command, "--help", home=tmp_path)
    assert ended.code == 0
    assert ended.out.startswith("Usage: dankai")


@pytest.mark.parametrize("command", [("rollout", "run"), ("rollut",), ("demo", "--fast")])
def test_a_command_that_is_none_is_refused_with_status_2(command: tuple[str, ...], tmp_path: Path) -> None:
    ended = dankai(*command, home=tmp_path / "home")
    assert ended.code == 2
    assert "Error: " in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    ended = dankai("demo", home=tmp_path / "home")
    assert ended.code == 2
    assert ended.err.startswith("dankai: DANKAI_HOME: ")
    assert len(ended.err.splitlines()) == 1


def test_a_full_disk_is_one_line_and_a_fault_of_ours_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(**_: object) -> None:
        Path("/dev/full").write_text("a log entry")

    def mistake(**_: object) -> None:
        raise OSError("no file is to blame")

    monkeypatch.setenv("DANKAI_HOME", str(tmp_path))
    assert _answer(fill) == 2
    said = f"dankai: {tmp_path}: No space left on device; make room on the disk, "
    assert capsys.readouterr().err == said + "or set DANKAI_HOME to another folder\n"
    with pytest.raises(OSError, match="no file is to blame"):
        _answer(mistake)
