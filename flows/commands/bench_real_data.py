"""`dankai bench real-data`: what reading an eighth of the blocks costs in accuracy on real data."""

from pathlib import Path

import click

from flows.commands.options import json_option, out_option, results_at, writable_folder


@click.command()
@out_option("Folder for real_data.json; one that is there is replaced.")
@click.option("--workers", default=1, show_default=True, help="Seeds trained side by side on the device.")
@json_option
def real_data(out: Path, workers: int, as_json: bool) -> None:
    """Accuracy at 12.5% of blocks against dense attention: flights, server machines, ETTh1; three seeds.

    Models trained sparse, and frozen dense ones with a selector fitted to them. A GPU takes minutes with a
    worker for each of the nine trainings, a CPU hours.

    \b
    Examples:
      dankai bench real-data --workers 9
    """
    folder = writable_folder(out)
    from pipelines.benchmarks.real_data import main

    with results_at(folder / "real_data.json", as_json):
        main(folder, workers)
