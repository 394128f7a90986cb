"""`dankai budget`: what each budget of the live model costs and is worth, and which one keeps a promise."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option

if TYPE_CHECKING:
    from pipelines.budgets import Calibration, Cost
    from sparse_model.config import Budget
    from validation.statistics import Interval


@click.command(short_help="What each budget of the live model costs and is worth.")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--latency-ms", type=float, help="90th percentile of one inference, at most.")
@click.option("--memory-mib", type=float, help="Peak memory of its process, at most.")
@click.option("--max-loss", type=float, help="Loss against dense as a share of dense's metric, at most.")
@json_option
def budget(
    dataset: Path,
    latency_ms: float | None,
    memory_mib: float | None,
    max_loss: float | None,
    as_json: bool,
) -> None:
    """Show the measured budgets of DATASET's live model, and the one that keeps the targets given.

    Every figure counts by the pessimistic end of its interval. With --max-loss the smallest budget is chosen,
    otherwise the largest that fits.

    \b
    Examples:
      dankai budget infra/datasets/flights.yaml
      dankai budget infra/datasets/flights.yaml --latency-ms 20 --max-loss 0.02
    """
    from pipelines.budgets import load_calibration
    from pipelines.data.spec import load_spec
    from pipelines.release import live_checkpoint
    from pipelines.settings import load_settings
    from validation.errors import InputError

    spec = load_spec(dataset)
    live = live_checkpoint(load_settings(), spec.name)
    if live.mode == "dense":
        raise InputError(
            f"{spec.name}: the dense incumbent is live, which reads everything: it has no budgets"
        )
    calibration = load_calibration(Path(live.folder))
    bounds = {"latency_ms": latency_ms, "max_loss": max_loss}
    bounds["memory_bytes"] = None if memory_mib is None else memory_mib * 2**20
    is_asked = any(bound is not None for bound in bounds.values())
    chosen = calibration.budget_for(**bounds) if is_asked else None
    if as_json:
        click.echo(_as_json(calibration, chosen))
    else:
        _print(calibration, chosen)


def _as_json(calibration: "Calibration", chosen: "Budget | None") -> str:
    import json

    answer = {"chosen": chosen and chosen.density, "calibration": calibration.model_dump(mode="json")}
    return json.dumps(answer, indent=1)


def _print(calibration: "Calibration", chosen: "Budget | None") -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console

    metric = calibration.points[0].metric
    title = f"{calibration.num_windows} validation windows; {calibration.conditions}"
    table = Table(title=title, title_justify="left")
    for name in ("density", "blocks", metric, "loss against dense", "p50 ms", "p90 ms", "peak MiB"):
        table.add_column(name, justify="right")
    for point in calibration.points:
        values = (f"{point.density:g}", f"{point.num_selected}", f"{point.task_metric:.4f}")
        mark = "bold" if chosen and chosen.density == point.density else None
        cells = (*values, _range(point.loss, "+.2%"), *_cost(point.cost))
        table.add_row(*map(escape, cells), style=mark)
    table.add_section()
    cells = ("dense", "all", f"{calibration.dense_metric:.4f}", "", *_cost(calibration.dense_cost))
    table.add_row(*map(escape, cells))
    console().print(table)
    if chosen is not None:
        click.echo(f"density {chosen.density:g}")


def _cost(cost: "Cost") -> tuple[str, str, str]:
    memory = cost.peak_memory_bytes
    return (
        _range(cost.latency_p50_ms, ".1f"),
        _range(cost.latency_p90_ms, ".1f"),
        f"{memory.value / 2**20:.0f}",
    )


def _range(interval: "Interval", form: str) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:{form}} [too few windows]"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
