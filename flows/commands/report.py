"""`dankai report`: the page of a run once more, in either language."""

from pathlib import Path

import click


@click.command(short_help="The page of a run, made again from what it kept.")
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option(
    "--lang",
    "language",
    type=click.Choice(["ja", "en"]),
    help="Japanese or English; by default the locale's (LC_ALL, LC_MESSAGES, LANG).",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; by default report.html in RUN_FOLDER.",
)
def report(run_folder: Path, language: str | None, out: Path | None) -> None:
    """Make the page of a run again from what the run kept in RUN_FOLDER; nothing is measured anew.

    \b
    RUN_FOLDER holds report.json: after a rollout it is DANKAI_HOME; retrainings and monitored batches have
    a folder each, in datasets/NAME/retrainings and datasets/NAME/monitor.

    \b
    Examples:
      dankai report .dankai
      dankai report .dankai --lang ja --out report-ja.html
    """
    from pipelines.report.leaving import write_page
    from pipelines.report.story import PAGE, read_story
    from pipelines.report.words import language_of

    story = read_story(run_folder)
    folder = run_folder if run_folder.is_dir() else run_folder.parent
    spoken = "ja" if language == "ja" else "en" if language == "en" else language_of()
    click.echo(write_page(story, out or folder / PAGE, spoken))
