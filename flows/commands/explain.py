"""`dankai explain`: where the live model looked in one window, and what sparse reading missed, by slice."""

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option, quiet_option

if TYPE_CHECKING:
    from pipelines.checkpoint import Checkpoint
    from pipelines.data.windows import Windows
    from pipelines.explaining import AskedBlock, Explanation, Value
    from validation.kpis import Kpi


@click.command(short_help="What the live model looked at in one window.")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--window", "when", metavar="TIME", help="Last instant that the window has seen.")
@click.option("--entity", help="Whose window, where the table holds several series.")
@click.option(
    "--audit", is_flag=True, help="Run dense rows too and report the mass that was missed, by slice."
)
@click.option("--part", default="test", show_default=True, help="Part of the data that --audit looks at.")
@click.option(
    "--density", type=float, help="Share of blocks to read; by default what the model is judged at."
)
@click.option(
    "--steps", "num_steps", default=5, show_default=True, help="Steps shown per block of questions."
)
@quiet_option
@json_option
def explain(
    dataset: Path,
    when: str | None,
    entity: str | None,
    audit: bool,
    part: str,
    density: float | None,
    num_steps: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show which past rows DATASET's live model read in the window at TIME, and with what attention.

    \b
    Examples:
      dankai explain infra/datasets/flights.yaml --window 2013-09-12T18:00
      dankai explain infra/datasets/flights.yaml --audit
    """
    from pipelines.data.spec import load_spec
    from pipelines.preparation import windows_of
    from pipelines.release import live_checkpoint
    from pipelines.settings import load_settings

    if when is None and not audit:
        raise click.UsageError("give --window TIME, --audit or both")
    spec, settings = load_spec(dataset), load_settings()
    checkpoint = live_checkpoint(settings, spec.name)
    share = _share(density, 1.0 if checkpoint.mode == "dense" else spec.training.target_density)
    windows = windows_of(checkpoint, spec, settings)
    window = _explained(checkpoint, windows, when, entity, share, num_steps) if when else None
    missed = _audited(checkpoint, windows, part, share, quiet) if audit else None
    if as_json:
        click.echo(_as_json(window, missed))
        return
    if window:
        _print_window(window)
    if missed:
        _print_audit(missed, f"Attention that reading {share:.4g} of the blocks missed, {part} part")


def _share(density: float | None, default: float) -> float:
    """What was asked for, or what the live model reads: everything, while that is the dense incumbent."""
    from sparse_model.config import Budget

    try:
        return Budget(default if density is None else density).density
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--density") from None


def _explained(
    checkpoint: "Checkpoint", windows: "Windows", when: str, entity: str | None, share: float, num_steps: int
) -> "Explanation":
    from pipelines.explaining import cutoff_at, explain_window

    try:
        instant = datetime.fromisoformat(when)
    except ValueError:
        fix = "write it as 2013-09-12T18:00"
        raise click.BadParameter(f"{when!r} is no time: {fix}", param_hint="--window") from None
    return explain_window(checkpoint, windows, cutoff_at(windows, instant, entity), share, num_steps)


def _audited(
    checkpoint: "Checkpoint", windows: "Windows", part: str, share: float, quiet: bool
) -> "list[Kpi]":
    from flows.commands.options import POLICY
    from flows.progress import progress
    from pipelines.explaining import missed_mass_kpis
    from validation.errors import InputError, unknown_name
    from validation.policy import load_policy

    if part not in windows.part_names:
        raise InputError(unknown_name("part", part, windows.part_names))
    policy = load_policy(POLICY)
    with progress(quiet) as report:
        return missed_mass_kpis(checkpoint, windows, part, share, policy, report)


def _as_json(window: "Explanation | None", missed: "list[Kpi] | None") -> str:
    import json

    answer = {
        "window": window and window.model_dump(mode="json"),
        "audit": missed and [each.model_dump(mode="json") for each in missed],
    }
    return json.dumps({name: value for name, value in answer.items() if value}, indent=1)


def _print_window(window: "Explanation") -> None:
    click.echo(
        f"{window.entity}: everything up to {window.cutoff} seen, {window.density:.4g} of the blocks read, "
        f"model {window.checkpoint[:12]}.\n"
        "Mass is the share of attention, mean over asked steps, layers and heads; ? was not known then."
    )
    for block in window.blocks:
        _print_block(block)


def _print_block(block: "AskedBlock") -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console

    read, rest = block.blocks, block.only_summarized
    click.echo(
        f"\n{block.num_asked} steps asked, {block.first} to {block.last}: "
        f"{block.exact_mass:.1%} of the attention on steps, {1 - block.exact_mass:.1%} on summaries"
    )
    for each in read:
        click.echo(f"  read    {each.first} to {each.last}: {each.mass:.1%}, by {each.read_by:.0%} of heads")
    click.echo(f"  as summaries only: {len(rest)} blocks, {sum(each.mass for each in rest):.1%}")
    table = Table()
    for name in ("mass", "time", *(block.steps[0].values if block.steps else ())):
        table.add_column(name, justify="right", overflow="fold", no_wrap=name == "time")
    for step in block.steps:
        table.add_row(
            f"{step.mass:.2%}", step.time, *(escape(_text(value)) for value in step.values.values())
        )
    console().print(table)


def _text(value: "Value") -> str:
    if value is None:
        return "?"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_audit(missed: "list[Kpi]", title: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console

    table = Table(title=title, title_justify="left")
    for name in ("slice", "windows", "missed [interval]", "read as summaries only [interval]"):
        table.add_column(name, justify="left" if name == "slice" else "right")
    by_name = {(each.slice, each.name): each for each in missed}
    for label in dict.fromkeys(each.slice for each in missed):
        lost, unread = by_name[label, "missed_mass"], by_name[label, "unread_mass"]
        cells = (label or "all", f"{lost.n}", _interval(lost), _interval(unread))
        table.add_row(*map(escape, cells))
    console().print(table)


def _interval(measured: "Kpi") -> str:
    if math.isnan(measured.low):
        return f"{measured.value:.2%} [too few windows]"
    return f"{measured.value:.2%} [{measured.low:.2%}, {measured.high:.2%}]"
