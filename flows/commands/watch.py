"""`dankai watch`: look on while a run works, from another terminal."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import datasets, json_option

if TYPE_CHECKING:
    from flows.watching import Line

_SECONDS_BETWEEN_LOOKS = 0.5


@click.command(short_help="A running rollout, training or monitor run, live.")
@click.argument("dataset", required=False, shell_complete=datasets)
@click.option("--once", is_flag=True, help="Say where it stands and end.")
@json_option
def watch(dataset: str | None, once: bool, as_json: bool) -> None:
    """Show the run that began last (of DATASET): stages, progress with time left, losses, memory.

    Reads what runs write into DANKAI_HOME/journals, so it disturbs nothing and works over ssh. On a terminal
    one picture is kept up to date, elsewhere a line is written for whatever is new. Ends with the run;
    Ctrl-C ends the looking alone.

    \b
    Examples:
      dankai watch
      dankai watch flights --once
      dankai watch | tee run.log
    """
    import json
    from contextlib import suppress
    from dataclasses import asdict

    from flows.tables import console
    from flows.watching import picture, seen, sentences
    from pipelines.journal import is_running, lines

    path = _journal(dataset)
    if once or as_json:
        found, running = seen(lines(path)), is_running(next(lines(path), {}))
        if as_json:
            click.echo(json.dumps({"journal": str(path), "running": running, **asdict(found)}, indent=1))
        else:
            console().print(picture(found, running))
        return
    with suppress(KeyboardInterrupt):
        if console().is_terminal:
            _live(path)
        else:
            for sentence in sentences(_following(path)):
                click.echo(sentence)


def _journal(dataset: str | None) -> Path:
    from pipelines.journal import newest
    from pipelines.settings import load_settings
    from validation.errors import InputError

    home = load_settings().home
    path = newest(home, dataset)
    if path is None:
        whose = f" of {dataset}" if dataset else ""
        raise InputError(f"{home}: no run{whose} has begun here yet; start one, or set DANKAI_HOME")
    return path


def _following(path: Path) -> "Iterator[Line]":
    """The lines that are there, and those that come while the run lasts."""
    import json
    import time

    from pipelines.journal import is_running, lines

    begin = next(lines(path), {})
    with path.open() as file:
        while True:
            running = is_running(begin)  # asked first: what it wrote before its end is still read
            while (line := file.readline()).endswith("\n"):
                yield json.loads(line)
            file.seek(file.tell() - len(line.encode()))  # a part of a line: the rest is still to come
            if not running:
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _live(path: Path) -> None:
    import time

    from rich.live import Live

    from flows.tables import console
    from flows.watching import picture, seen
    from pipelines.journal import is_running, lines

    begin = next(lines(path), {})
    with Live(console=console(), auto_refresh=False) as live:
        running = True
        while running:
            running = is_running(begin)
            live.update(picture(seen(lines(path)), running), refresh=True)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
