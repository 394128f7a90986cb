"""`dankai replay`: months of operation in minutes, with four ways of deciding when to train again."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import (
    json_option,
    out_option,
    policy_option,
    quiet_option,
    results_at,
    writable_folder,
)

if TYPE_CHECKING:
    from pipelines.strategies import Comparison, Strategy


@click.command(short_help="Months of operation in minutes: never, monthly, upon drift.")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--from", "start", required=True, metavar="MONTH", help="The first month, such as 2013-05.")
@click.option("--step", type=click.Choice(["month"]), default="month", show_default=True)
@policy_option("What counts as drift, and how to train again.")
@out_option("Folder for replay.json; one that is there is replaced.")
@quiet_option
@json_option
def replay(dataset: Path, start: str, step: str, policy: Path, out: Path, quiet: bool, as_json: bool) -> None:
    """Run DATASET's months as they would have come, training again never, monthly, upon drift or growth.

    Growth: half as many rows again are known as the model was trained on.

    Nothing that is live is touched.

    \b
    Example:
      dankai replay infra/datasets/flights.yaml --from 2013-05 --step month
    """
    first = _month(start)
    folder = writable_folder(out)
    from flows.progress import progress
    from pipelines.data.spec import load_spec
    from pipelines.files import replace_file
    from pipelines.job import open_job
    from pipelines.preparation import refuse_unusable
    from pipelines.settings import load_settings, quiet_environment
    from pipelines.strategies import compare, months_from

    settings = load_settings()
    refuse_unusable(months_from(load_spec(dataset), first), settings)
    quiet_environment(settings)
    with progress(quiet) as report:
        compared = compare(open_job(dataset, policy, settings, report), first)
    replace_file(folder / "replay.json", compared.model_dump_json(indent=1).encode() + b"\n")
    with results_at(folder / "replay.json", as_json):
        _print(compared)


def _month(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m")
    except ValueError:
        raise click.BadParameter(f"{text!r} is no month: write it as 2013-05", param_hint="--from") from None


def _print(compared: "Comparison") -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console

    table = Table(title=f"{compared.dataset}: {compared.metric} by month", title_justify="left")
    for name in ("month", *(course.strategy for course in compared.courses)):
        table.add_column(name, justify="right", overflow="fold")
    for months in zip(*(course.months for course in compared.courses), strict=True):
        cells = [f"{each.value.value:.3f}{' *' if each.trained else ''}" for each in months]
        table.add_row(months[0].month, *cells)
    table.add_section()
    for name, cells in _totals(compared):
        table.add_row(name, *map(escape, cells))
    console().print(table)
    click.echo("* trained again at its end")
    told: tuple[tuple[Strategy, str], ...] = (
        ("drift", "upon drift"),
        ("growth", "with half as many rows again"),
    )
    for name, words in told:
        met = "" if compared.is_within(0.01, name) else " not"
        click.echo(
            f"training {words} is{met} within 1% of training monthly with at most half of its trainings"
        )


def _totals(compared: "Comparison") -> list[tuple[str, list[str]]]:
    courses = compared.courses
    values = [f"{each.value.value:.4f} [{each.value.low:.4f}, {each.value.high:.4f}]" for each in courses]
    beside = [
        f"{each.versus_monthly.value:+.4f} [{each.versus_monthly.low:+.4f}, {each.versus_monthly.high:+.4f}]"
        if each.versus_monthly
        else ""
        for each in courses
    ]
    return [
        ("mean of the months", [f"{each.mean:.4f}" for each in courses]),
        ("all months", values),
        ("against monthly", beside),
        ("trainings", [str(each.num_trainings) for each in courses]),
        ("training seconds", [f"{each.train_seconds:.0f}" for each in courses]),
        ("gate would say", [_gates(each.months) for each in courses]),
    ]


def _gates(months: tuple) -> str:
    said = [str(month.gate) for month in months if month.gate]
    return ", ".join(f"{said.count(each)} {each}" for each in dict.fromkeys(said)) or "-"
