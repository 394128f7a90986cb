"""`dankai bench quality`: accuracy where the right answer is known."""

from pathlib import Path

import click

from flows.commands.options import json_option, out_option, results_at, writable_folder

TASKS = ("planted", "pilot", "mqar", "listops")


@click.command()
@out_option("Folder for quality.json, weights and generated data; cells measured there before are kept.")
@click.option(
    "--task", "tasks", type=click.Choice(TASKS), multiple=True, help="Only this task; may be repeated."
)
@click.option("--workers", default=1, show_default=True, help="Models trained side by side on the device.")
@click.option("--quick", is_flag=True, help="Tiny sizes that show that it runs, in seconds on a CPU.")
@json_option
def quality(out: Path, tasks: tuple[str, ...], workers: int, quick: bool, as_json: bool) -> None:
    """Accuracy of sparse reading against dense, controls and an oracle; three seeds a cell.

    Planted recall up to 65,536 steps, the pilot on a frozen model, MQAR and ListOps. One GPU, about a
    quarter of an hour with 14 workers; measured cells are not measured again.

    \b
    Examples:
      dankai bench quality --quick
      dankai bench quality --task planted --task pilot --workers 14
    """
    from pipelines.benchmarks.quality.report import run
    from pipelines.benchmarks.quality.results import Results

    results = Results(writable_folder(out) / ("quality-quick.json" if quick else "quality.json"))
    work = out / "quality-work"
    with results_at(results.path, as_json):
        table = run(results, work, tasks or TASKS, quick, workers, lambda line: click.echo(line, err=True))
        click.echo(table)
