"""Options that several commands share."""

import glob
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "infra" / "rollout.yaml"


def policy_option(meaning: str | None = None) -> Callable[..., Any]:
    """`--policy FILE`, by default the shipped one."""
    return click.option(
        "--policy",
        type=click.Path(path_type=Path),
        default=POLICY,
        show_default="infra/rollout.yaml",
        help=meaning,
    )


quiet_option = click.option("--quiet", is_flag=True, help="No progress display.")
json_option = click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")


def out_option(meaning: str) -> Callable[..., Any]:
    """`--out FOLDER` of a benchmark."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=Path(".dankai/bench"),
        show_default=True,
        help=meaning,
    )


@contextmanager
def results_at(path: Path, as_json: bool) -> Iterator[None]:
    """A benchmark's tables on standard output; with --json its results there, and the tables on the other."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield
    if as_json:
        click.echo(path.read_text(), nl=False)
    click.echo(f"wrote {path}", err=True)


def datasets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """For completion: the datasets that something was done with here."""
    folder = Path(os.environ.get("DANKAI_HOME") or ".dankai") / "datasets"
    return sorted(path.name for path in folder.glob(f"{glob.escape(incomplete)}*"))


def writable_folder(out: Path) -> Path:
    """The folder, made and known to be writable before minutes are spent."""
    from validation.errors import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make folder {out}: {error.strerror}; name another") from error
    if not os.access(out, os.W_OK):
        raise InputError(f"--out: folder {out} cannot be written to; name another")
    return out
