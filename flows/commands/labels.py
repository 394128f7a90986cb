"""`dankai labels`: outcomes that came later than their rows."""

from pathlib import Path

import click

from flows.commands.options import json_option, policy_option, quiet_option


@click.command(short_help="Outcomes that came later; judges earlier batches by them.")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@policy_option("What counts as a loss.")
@quiet_option
@json_option
def labels(dataset: Path, labels: Path, policy: Path, quiet: bool, as_json: bool) -> None:
    """Match the outcomes in LABELS with rows of earlier batches of DATASET, and judge those batches by them.

    A row is known by entity, time and the columns known in advance. What matches no row, or says something
    else than is known, is set aside and counted.

    \b
    Example:
      dankai labels infra/datasets/flights.yaml incoming/2014-01-outcomes.parquet
    """
    from flows.commands.monitor import job_of, print_monitored
    from pipelines.labels import attach_labels
    from pipelines.report.leaving import leave_batch

    with job_of(dataset, policy, quiet) as job:
        report = attach_labels(job, labels)
        for each in report.monitored:
            leave_batch(job, each)
    if as_json:
        click.echo(report.model_dump_json(indent=1))
        return
    click.echo(
        f"{report.num_new} new, {report.num_repeated} known already, {report.num_unknown} of unknown rows, "
        f"{report.num_contradicting} contradicting what is known"
    )
    if report.quarantine:
        click.echo(f"set aside: {report.quarantine}")
    for each in report.monitored:
        print_monitored(each)
