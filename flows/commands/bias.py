"""`dankai bias`: how good the live model was for every group, batch after batch."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option

if TYPE_CHECKING:
    from pipelines.monitor import MonitorReport
    from validation.kpis import Kpi


@click.command(short_help="How good the live model was for every group.")
@click.argument("dataset", type=click.Path(path_type=Path))
@json_option
def bias(dataset: Path, as_json: bool) -> None:
    """Show, batch after batch, the metric of every group of DATASET, the largest gap and what was missed.

    \b
    Example:
      dankai bias infra/datasets/flights.yaml
    """
    import json

    from pipelines.data.spec import load_spec
    from pipelines.monitor import reports
    from pipelines.settings import load_settings
    from validation.errors import InputError

    spec = load_spec(dataset)
    seen = [each for each in reports(load_settings(), spec.name) if each.groups]
    if not seen:
        raise InputError(
            f"{spec.name}: no batch with groups was looked at yet; run: dankai monitor {dataset} BATCH"
        )
    if as_json:
        rows = [{"batch": each.batch, "groups": [kpi.model_dump() for kpi in each.groups]} for each in seen]
        click.echo(json.dumps(rows, indent=1))
    else:
        _print(seen)


def _print(seen: "list[MonitorReport]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console

    table = Table(title="By group and batch", title_justify="left")
    for name in ("batch from", "group", "metric [interval]", "windows", "attention missed"):
        table.add_column(name, overflow="fold")
    for report in seen:
        for cells in _rows(report):
            table.add_row(*map(escape, cells))
        table.add_section()
    console().print(table)


def _rows(report: "MonitorReport") -> Iterator[tuple[str, ...]]:
    """A line for every group, then one for the largest gap of each column."""
    by_name = {(kpi.slice, kpi.name): kpi for kpi in report.groups}
    start = f"{report.arrival.start:%Y-%m-%d}" if report.arrival.start else ""
    for label in dict.fromkeys(kpi.slice for kpi in report.groups if kpi.slice):
        value = by_name.get((label, report.metric)) or by_name.get((label, "largest_gap"))
        missed = by_name.get((label, "missed_mass"))
        is_gap = (label, "largest_gap") in by_name
        name = f"largest gap, {label}" if is_gap else label
        yield start, name, _interval(value), str(value.n) if value else "", _interval(missed)


def _interval(kpi: "Kpi | None") -> str:
    if kpi is None or math.isnan(kpi.value):
        return "-"
    if math.isnan(kpi.low):
        return f"{kpi.value:.3f} [too few windows]"
    return f"{kpi.value:.3f} [{kpi.low:.3f}, {kpi.high:.3f}]"
