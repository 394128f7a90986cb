"""`dankai monitor` and `dankai retrain`: is the newest batch like what the model knows, and if not, train."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option, policy_option, quiet_option

if TYPE_CHECKING:
    from pipelines.job import Job
    from pipelines.monitor import MonitorReport
    from pipelines.retraining import RetrainingReport


@click.command(short_help="Look at a new batch: sound? drifted? Train again?")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("batch", type=click.Path(path_type=Path))
@policy_option("What counts as drift, and when to train again.")
@quiet_option
@json_option
def monitor(dataset: Path, batch: Path, policy: Path, quiet: bool, as_json: bool) -> None:
    """Check BATCH (a file or folder like DATASET's source), score it with what is live, look for drift.

    Says none, watch, retrain or fault, and why. A fault of the data is set aside and never trains. Where
    PREFECT_API_URL names a server, the decision is an event there, which may start a retraining.

    \b
    Example:
      dankai monitor infra/datasets/flights.yaml incoming/2014-01.parquet
    """
    from pipelines.monitor import monitor_batch
    from pipelines.report.leaving import leave_batch

    with job_of(dataset, policy, quiet) as job:
        report = monitor_batch(job, batch)
        page = None if report.repeated else leave_batch(job, report).page
    if job.settings.prefect_api_url and not report.repeated:
        from flows.drift_events import announce

        announce(report, dataset.resolve(), policy.resolve())
    if as_json:
        click.echo(report.model_dump_json(indent=1))
    else:
        print_monitored(report)
        print_page(page)


@click.command(short_help="Train a challenger that meets what is live.")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--reason", required=True, help="Why; it stays in the release log.")
@policy_option("How to train, and what the challenger has to show.")
@quiet_option
@json_option
def retrain(dataset: Path, reason: str, policy: Path, quiet: bool, as_json: bool) -> None:
    """Train a challenger on all that is known of DATASET; it meets what is live on the newest windows.

    \b
    Example:
      dankai retrain infra/datasets/flights.yaml --reason "new summer schedule"
    """
    from pipelines.job import training_turn
    from pipelines.report.leaving import leave_retraining
    from pipelines.retraining import retrain as train_again

    with job_of(dataset, policy, quiet) as job, training_turn(job.settings, job.spec.name, wait=False):
        report = train_again(job, reason)
        page = leave_retraining(job, report).page
    if as_json:
        click.echo(report.model_dump_json(indent=1))
    else:
        _print_retrained(report)
        print_page(page)


@contextmanager
def job_of(dataset: Path, policy: Path, quiet: bool) -> Iterator["Job"]:
    """The dataset's stores, opened only where a model of it is live; progress is shown meanwhile.

    Pages that earlier runs were killed before are made first.
    """
    from flows.progress import progress
    from pipelines.data.spec import load_spec
    from pipelines.job import open_job
    from pipelines.release import live_checkpoint
    from pipelines.report.leaving import leave_missing
    from pipelines.settings import load_settings, quiet_environment
    from validation.policy import load_policy

    settings, spec = load_settings(), load_spec(dataset)
    load_policy(policy)
    live_checkpoint(settings, spec.name)
    quiet_environment(settings)
    with progress(quiet) as report:
        job = open_job(dataset, policy, settings, report)
        for left in leave_missing(job):
            click.echo(f"made now, as its run was cut off: {left.page}", err=True)
        yield job


def print_page(page: Path | None) -> None:
    if page is not None:
        click.echo(f"Report: {page}")


def print_monitored(report: "MonitorReport") -> None:
    again = " (looked at before)" if report.repeated else ""
    click.echo(f"{report.decision}: batch {report.batch[:12]}{again}")
    for reason in report.reasons:
        click.echo(f"  {reason}")


def _print_retrained(report: "RetrainingReport") -> None:
    click.echo(f"{report.outcome}: {report.why}")
