"""Tables on the terminal."""

import sys
from typing import TYPE_CHECKING

from pipelines.escaping import printable

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.replay import Month
    from pipelines.settings import Settings
    from pipelines.summary import RolloutSummary
    from validation.statistics import Interval

_WIDTH = 132  # of a log or a pipe, which do not wrap
_COLORS = {"PASS": "green", "HOLD": "yellow", "FAIL": "red"}


def console() -> "Console":
    """Standard output; as wide as the terminal, or as a log may be."""
    from rich.console import Console

    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)


def print_summary(summary: "RolloutSummary", settings: "Settings") -> None:
    """The verdicts, how good each is, the cost at each length, the months, and where everything lies."""
    out = console()
    _verdicts(out, summary)
    _how_good(out, summary)
    _costs(out, summary)
    _months(out, summary)
    out.print(f"\n{printable(summary.sentence)}", style="bold", markup=False)
    out.print(f"{summary.seconds:.0f} s. Everything: {settings.home}/summary.json", highlight=False)
    out.print(f"Report: {settings.home}/report.html", highlight=False)
    out.print(f"Data Docs: {summary.prepared.report.docs_uri}", highlight=False)
    if summary.bundle:
        out.print(f"Bundle: {summary.bundle.folder}", highlight=False)
    out.print("Runs: dankai ui", highlight=False)


def _verdicts(console: "Console", summary: "RolloutSummary") -> None:
    from rich.table import Table

    table = Table(title=_plain(summary.description), title_justify="left")
    for name in ("stage", "KPI", "value [interval]", "threshold", "verdict"):
        table.add_column(_plain(name), overflow="fold")
    previous = ""
    for row in summary.rows():
        if row.stage != previous and previous:
            table.add_section()
        color = _COLORS[row.verdict.split()[0]]
        stage = row.stage if row.stage != previous else ""
        cells = (stage, row.kpi, row.value, row.threshold)
        table.add_row(*map(_plain, cells), f"[{color}]{row.verdict}[/{color}]")
        previous = row.stage
    console.print(table)


def _how_good(console: "Console", summary: "RolloutSummary") -> None:
    from rich.markup import escape
    from rich.table import Table

    first = summary.how_good[0]
    title = f"How good: each by itself on the {first.num_windows} windows of the {first.part} part"
    table = Table(title=title, title_justify="left")
    for name in ("", *first.metrics):
        table.add_column(name.replace("_", " "))
    for each in summary.how_good:
        role = each.role if each.role == each.subject else f"{each.role} ({each.subject})"
        shown = [f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]" for of in each.metrics.values()]
        table.add_row(_plain(role), *map(escape, shown))
    console.print(table)


def _costs(console: "Console", summary: "RolloutSummary") -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Inference, sparse against dense, in fresh processes", title_justify="left")
    for name in ("steps", "sparse p50", "dense p50", "ratio [interval]", "memory ratio", "inferences"):
        table.add_column(_plain(name), justify="right")
    for cost in summary.costs:
        table.add_row(
            f"{cost.num_steps:,}",
            f"{cost.candidate.latency_quantile(0.5):,.1f} ms",
            f"{cost.dense.latency_quantile(0.5):,.1f} ms",
            escape(_ratio(cost.latency_p50_ratio, summary.min_timings)),
            f"{cost.peak_memory_ratio.value:.2f}",
            str(len(cost.candidate.latency_ms)),
        )
    console.print(table)


def _ratio(ratio: "Interval", min_timings: int) -> str:
    """With an interval where there were timings enough for one: two of them only look like one."""
    if ratio.n < min_timings:
        return f"{ratio.value:.2f}, too few for an interval"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _months(console: "Console", summary: "RolloutSummary") -> None:
    from rich.table import Table

    if not summary.months:
        return
    table = Table(title="Operation, month by month", title_justify="left")
    for name in ("month", "data", "champion", "metric [interval]", "drift", "then"):
        table.add_column(_plain(name), overflow="fold")
    for month in summary.months:
        value = f"{month.metric} {month.value.value:.3f} [{month.value.low:.3f}, {month.value.high:.3f}]"
        first, *others = month.drift.reasons or ("nothing moved",)
        drift = f"{month.drift.decision}: {first}" + (f" (and {len(others)} more)" if others else "")
        cells = (month.month, month.data.outcome, month.champion[:8], value, drift, _then(month))
        table.add_row(*map(_plain, cells))
    console.print(table)


def _then(month: "Month") -> str:
    """What followed from a month."""
    if month.not_judged:
        waits = f"; challenger {month.waiting[:8]} waits" if month.waiting else ""
        return f"nobody judged, {month.not_judged}{waits}"
    met = f"challenger met: {month.evaluation.verdict.outcome}; " if month.evaluation else ""
    wants = month.drift.decision == "retrain"
    asks = "retraining, which a later month would judge" if wants else "nothing to do"
    back = f"; taken back: {month.rolled_back}" if month.rolled_back else ""
    return f"{met}{'retrained' if month.retrained else asks}{back}"


def _plain(text: str) -> str:
    """What people wrote, shown as they wrote it: neither rich nor the terminal obeys it."""
    from rich.markup import escape

    return escape(printable(text))
