"""`dankai bench adaptation`: what a model of other sites is worth at a new one that has little data."""

from pathlib import Path

import click

from flows.commands.options import json_option, out_option, results_at, writable_folder


@click.command()
@out_option("Folder for adaptation.json; one that is there is replaced.")
@click.option(
    "--windows",
    "num_windows",
    type=click.IntRange(min=10),
    multiple=True,
    help="Windows that the new site has; may be repeated. [default: 50, 100, 200, 400]",
)
@json_option
def adaptation(out: Path, num_windows: tuple[int, ...], as_json: bool) -> None:
    """Few-shot adaptation to a held-out airport of the flights, against training from scratch.

    Selector and head of a model of the other airports are trained on 50, 100, 200, 400 windows of the new
    one; beside it all weights, a new model, boosting, and the model as it is. A CPU does.

    \b
    Examples:
      dankai bench adaptation
      dankai bench adaptation --windows 200 --out results
    """
    folder = writable_folder(out)
    from pipelines.benchmarks.adaptation import NUM_WINDOWS, main

    with results_at(folder / "adaptation.json", as_json):
        main(folder, num_windows or NUM_WINDOWS)
