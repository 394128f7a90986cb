"""What a run's journal says, for somebody who looks on: one picture, or a line for whatever is new."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipelines.escaping import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

Line = dict[str, Any]
_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Seen:
    """Where a run stands, by its journal."""

    dataset: str = ""
    process: str = ""
    since: str = ""
    last: str = ""
    work: dict[str, Line] = field(default_factory=dict)
    """Every piece of work by name, in order of beginning: first and newest report, and whether it is done."""
    losses: dict[str, float] = field(default_factory=dict)
    whose: str = ""
    verdicts: dict[str, str] = field(default_factory=dict)
    sentence: str = ""
    rss_bytes: int = 0
    peak_bytes: int = 0

    def take(self, line: Line) -> None:
        """One line more."""
        if "dataset" in line:
            self.dataset, self.since = line["dataset"], line["time"]
            self.process = f"process {line['process']['process.id']} on {line['process']['process.host']}"
        self.last = line["time"]
        self.rss_bytes = line.get("rss_bytes") or self.rss_bytes
        self.peak_bytes = max(self.peak_bytes, self.rss_bytes)
        if "what" in line:
            begun = self.work.get(line["what"])
            anew = begun is None or begun["done"] >= begun["total"]
            self.work[line["what"]] = {"began": line if anew else begun["began"], **line}  # type: ignore[index]
        if "losses" in line:
            self.losses, self.whose = line["losses"], line.get("whose", "")
        if "verdict" in line:
            said = [line["verdict"], "; ".join(line.get("reasons", ()))]
            self.verdicts[line["stage"]] = ": ".join(filter(None, said))
        self.sentence = line.get("sentence", self.sentence)

    @property
    def now(self) -> list[Line]:
        """Work that is not done."""
        return [line for line in self.work.values() if line["done"] < line["total"]]


def seen(lines: Iterable[Line]) -> Seen:
    found = Seen()
    for line in lines:
        found.take(line)
    return found


def progress_text(line: Line) -> str:
    """`training dense (seed 0): 120/360 in 21 s, about 42 s left`"""
    began, seconds = line["began"], _seconds(line["began"]["time"], line["time"])
    gained, rest = line["done"] - began["done"], line["total"] - line["done"]
    left = f", about {_span(seconds / gained * rest)} left" if gained > 0 and rest > 0 and seconds > 0 else ""
    return f"{line['what']}: {line['done']}/{line['total']} in {_span(seconds)}{left}"


def sentences(lines: Iterable[Line]) -> Iterator[str]:
    """A line of text for whatever is new: work that begins, ends or goes on, losses, verdicts."""
    found, told = Seen(), ""
    for line in lines:
        found.take(line)
        at = line["time"][11:19]
        if "what" in line:
            work = found.work[line["what"]]
            is_news = work["began"] is line or line["done"] >= line["total"]
            if is_news or not told or _seconds(told, line["time"]) >= _SECONDS_BETWEEN_LINES:
                told = line["time"]
                yield printable(f"{at} {progress_text(work)}  [{memory_text(found)}]")
        elif "losses" in line:
            yield printable(f"{at} {found.whose}: {losses_text(found)}")
        elif "verdict" in line:
            yield printable(f"{at} {line['stage']} gate: {found.verdicts[line['stage']]}")
        elif "sentence" in line:
            yield printable(f"{at} {found.sentence}")


def losses_text(found: Seen) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.losses.items())


def memory_text(found: Seen) -> str:
    return f"{found.rss_bytes / 2**20:,.0f} MiB, at most {found.peak_bytes / 2**20:,.0f}"


def picture(found: Seen, is_running: bool) -> "RenderableType":
    """One screen."""
    from rich.markup import escape
    from rich.table import Table

    state = "running" if is_running else "its process has ended"
    title = f"{found.dataset}: {state}, {found.process}, since {found.since[:19].replace('T', ' ')} UTC"
    table = Table(title=escape(printable(title)), title_justify="left", show_header=False)
    for stage, verdict in found.verdicts.items():
        table.add_row(f"{stage} gate", escape(printable(verdict)))
    done = [line["what"] for line in found.work.values() if line["done"] >= line["total"]]
    if done:
        table.add_row("done", escape(printable(", ".join(done))))
    for line in found.now:
        table.add_row("now", escape(printable(progress_text(line))))
    if found.losses:
        table.add_row(f"losses of {escape(found.whose)}", escape(losses_text(found)))
    table.add_row("memory", escape(memory_text(found)))
    if found.sentence:
        table.add_row("said", escape(printable(found.sentence)))
    return table


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
