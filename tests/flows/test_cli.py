"""The command line answers at once, and shows people what they need."""

import inspect
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flows.cli import _answer
from flows.cli import dankai as cli
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
    assert "dankai rollout run " in ended[0].out


@pytest.mark.parametrize("module", ["flows.cli", "pipelines.settings", "pipelines.training_plan"])
def test_importing_what_the_command_line_starts_with_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert loaded.stdout.strip() == "[]"


def test_what_reads_the_record_and_says_no_waits_for_no_model() -> None:
    """What status, gate, report, approve, rollback and every refusal of a rollout import."""
    modules = "pipelines.release, pipelines.report.story, pipelines.backtest, pipelines.summary"
    code = f"import sys, {modules}; print({{'torch', 'mlflow', 'prefect'}} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert loaded.stdout.strip() == "set()", loaded.stderr


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command and group below `group`, with the context in which its help is asked for."""
    for name in group.list_commands(context):
        command = group.commands[name]
        inside = click.Context(command, context, name)
        yield command, inside
        if isinstance(command, click.Group):
            yield from commands(command, inside)


EVERY = list(commands(cli, click.Context(cli, info_name="dankai")))
NAMES = [context.command_path for _, context in EVERY]


@pytest.mark.parametrize(("command", "context"), EVERY, ids=NAMES)
def test_every_command_explains_itself_with_an_example(
    command: click.Command, context: click.Context
) -> None:
    shown = command.get_help(context)
    assert shown.startswith("Usage: dankai")
    name = context.command_path
    words = shown[shown.index("Example") :]
    assert name in words, f"the example does not show {name}"


@pytest.mark.parametrize(("command", "context"), EVERY, ids=NAMES)
def test_what_shows_progress_can_be_quiet_and_what_prints_a_table_has_json(
    command: click.Command, context: click.Context
) -> None:
    """By the source of each command's module: whoever adds one is reminded."""
    if command.callback is None or isinstance(command, click.Group):
        return
    source = inspect.getsource(inspect.unwrap(command.callback))
    options = {option for parameter in command.params for option in parameter.opts}
    if "progress(" in source or "job_of(" in source:
        assert "--quiet" in options
    has_table = "rich.table" in inspect.getsource(sys.modules[inspect.unwrap(command.callback).__module__])
    if (has_table and "_print(" in source) or "print_" in source or "results_at(" in source:
        assert "--json" in options


def test_the_help_leads_a_stranger_by_headings_and_says_the_exit_statuses() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    headings = ["First steps:", "What is going on:", "Months of operation:", "Exit status:"]
    assert [shown.index(heading) for heading in headings] == sorted(map(shown.index, headings))
    assert "..." not in shown.replace("[ARGS]...", ""), "cut short at 80 columns"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_is_told_how_to_complete(shell: str) -> None:
    told = CliRunner().invoke(cli, ["completion", shell], prog_name="dankai")
    assert told.exit_code == 0
    assert f"_DANKAI_COMPLETE={shell}_complete" in told.output


def test_bash_completes_commands_and_the_datasets_that_are_known_here(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "pump").mkdir(parents=True)
    for at, words, completed in (("1", "dankai rollb", "rollback"), ("2", "dankai rollback p", "pump")):
        told = dankai(home=tmp_path, _DANKAI_COMPLETE="bash_complete", COMP_CWORD=at, COMP_WORDS=words)
        assert told.out.split() == [f"plain,{completed}"]


def test_who_reads_only_the_first_lines_sees_no_traceback(tmp_path: Path) -> None:
    """`dankai --help | head -1`: the pipe is closed while something is still to be written."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [str(Path(sys.executable).with_name("dankai")), "history", "--json"]
    environ = {**os.environ, "DANKAI_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environ, timeout=30)
    os.close(writer)
    assert ended.stderr == b""


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


@pytest.mark.parametrize(("given", "has_colors"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colors_are_for_a_terminal_and_not_where_no_color_is_set(
    given: dict[str, str], has_colors: bool, tmp_path: Path
) -> None:
    outside, inside = pty.openpty()
    environ = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environ |= {"TERM": "xterm-256color", "DANKAI_HOME": str(tmp_path / "home"), **given}
    command = [str(Path(sys.executable).with_name("dankai")), "doctor"]
    subprocess.run(command, stdout=inside, stderr=subprocess.DEVNULL, env=environ, timeout=30)
    os.close(inside)
    shown = os.read(outside, 65536).decode()
    assert ("\x1b[32m" in shown) == has_colors
    assert "python" in shown
