"""What a run is doing, line by line on disk, so that another terminal, or another machine, can look on.

DANKAI_HOME/journals/TIME-DATASET-PID.jsonl, one JSON object a line. The first says whose run it is;
the others hold what was reported (`what`, `done`, `total`), `losses`, verdicts (`stage`, `verdict`,
`reasons`) and the last word (`sentence`).
Written on the way, never read by the run itself: losing it loses nothing.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.clock import now
from pipelines.fingerprint import process_is_alive, process_tags
from pipelines.process_memory import resident_bytes

Report = Callable[[str, int, int], None]
FOLDER = "journals"
_KEPT = 30
_SECONDS_BETWEEN_LINES = 1.0
logger = logging.getLogger(__name__)


class Journal:
    """A progress report that is also written down; call it with (what, units done, units planned)."""

    def __init__(self, home: Path, dataset: str, report: Report) -> None:
        self._report, self._last, self._known = report, 0.0, set[str]()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.path = home / FOLDER / f"{stamp}-{dataset}-{os.getpid()}.jsonl"
        self._begin = {"dataset": dataset, "process": process_tags()}

    def __call__(self, what: str, done: int, total: int) -> None:
        is_new, is_done = what not in self._known, done >= total
        if is_new or is_done or time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            (self._known.discard if is_done else self._known.add)(what)
            self.note(what=what, done=done, total=total)
        self._report(what, done, total)

    def note(self, **facts: Any) -> None:
        """One line: these facts, when, and the memory of this process. A full disk costs the line alone."""
        line = {"time": now(), "rss_bytes": _resident(), **facts}
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                _drop_old(self.path.parent)
                line = {**self._begin, **line}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            logger.debug("%s: %s", self.path, error)


def newest(home: Path, dataset: str | None = None) -> Path | None:
    """The journal of the run that began last, of this dataset or of any."""
    found = sorted((home / FOLDER).glob(f"*-{dataset or '*'}-*.jsonl"))
    return found[-1] if found else None


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines that are there now."""
    with path.open() as file:
        for line in file:
            with suppress(ValueError):  # the last one may still be written
                yield json.loads(line)


def is_running(begin: Mapping[str, Any]) -> bool:
    """Whether the process of a journal's first line is still there; taken for granted on another machine."""
    tags = begin.get("process", {})
    return tags.get("process.host") != process_tags()["process.host"] or process_is_alive(tags)


def _resident() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return resident_bytes()
    return None


def _drop_old(folder: Path) -> None:
    for path in sorted(folder.glob("*.jsonl"))[: -_KEPT + 1]:
        path.unlink(missing_ok=True)
