"""Progress for people: a bar with the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str, int, int], None]
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """A function to call with (what is being done, units done, units planned)."""
    if quiet:
        yield lambda what, done, total: None
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("in"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        known = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in known or bars.tasks[known[what]].finished:  # the same work, begun anew
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done, total=total)

        yield report


def _lines() -> Report:
    """For logs and CI: each piece of work when it starts, when it is done, and every few seconds between."""
    started: dict[str, float] = {}
    last = [0.0]

    def report(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        is_new = what not in started
        since = now - started.setdefault(what, now)
        if done >= total:
            started.pop(what)  # the same work may begin anew
        if not is_new and done < total and now - last[0] < _SECONDS_BETWEEN_LINES:
            return
        last[0] = now
        left = f", about {since / done * (total - done):.0f} s left" if 0 < done < total else ""
        print(f"{what}: {done}/{total} in {since:.0f} s{left}", file=sys.stderr, flush=True)

    return report
