"""`dankai up`: everything that has to run for months, started and stopped as one."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import ROOT

if TYPE_CHECKING:
    from flows.services import Plan

_PARTS = ("prefect", "mlflow", "worker")
_port = click.IntRange(1, 65535)


@click.command(short_help="Servers, worker and schedules, kept running until Ctrl-C.")
@click.argument("parts", nargs=-1, type=click.Choice(_PARTS))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where both servers listen.")
@click.option("--prefect-port", type=_port, default=4200, show_default=True)
@click.option("--mlflow-port", type=_port, default=5000, show_default=True)
@click.option(
    "--deployments",
    type=click.Path(path_type=Path),
    default=ROOT / "infra" / "prefect.yaml",
    help="What runs when, and on which event. Default: infra/prefect.yaml.",
)
@click.option("--queue", "queues", multiple=True, help="Work queue that the worker serves. Default: all.")
def up(
    parts: tuple[str, ...],
    host: str,
    prefect_port: int,
    mlflow_port: int,
    deployments: Path,
    queues: tuple[str, ...],
) -> None:
    """Run a Prefect server, an MLflow server and a worker with the deployments, until Ctrl-C.

    \b
    Each is started once the one before answers, and started again when it ends or falls silent. PARTS names
    some of them (prefect, mlflow, worker) to run the rest elsewhere: a worker alone finds the servers by
    PREFECT_API_URL and MLFLOW_TRACKING_URI. Databases: SQLite in the home folder, or, where
    DANKAI_DATABASE_URL names a PostgreSQL, DATABASE_prefect and DATABASE_mlflow beside the release log's.

    \b
    Examples:
      dankai up
      dankai up worker --queue gpu
    """
    from flows.services import plan_of
    from pipelines.files import exclusive_lock
    from pipelines.settings import load_settings, quiet_environment

    settings = load_settings()
    quiet_environment(settings)
    plan = plan_of(settings, parts or _PARTS, host, prefect_port, mlflow_port, deployments, queues)
    with exclusive_lock(settings.home / f"up-{'-'.join(sorted(parts or _PARTS))}.lock", wait=False):
        _until_stopped(plan)


def _until_stopped(plan: "Plan") -> None:
    """The first Ctrl-C or SIGTERM stops everything in good order; further ones change nothing."""
    from flows.supervisor import Supervisor

    def stop(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        sys.exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with Supervisor(_say) as supervisor:
        plan.start(supervisor)
        _say("everything is up (Ctrl-C stops it)")
        supervisor.watch()


_say: Callable[[str], None] = click.echo
