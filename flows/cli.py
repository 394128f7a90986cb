"""The `dankai` command. Heavy packages are imported by the commands that use them."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands import edge_rollout, edge_run, edge_update
from flows.commands.bench import bench
from flows.commands.bias import bias
from flows.commands.budget import budget
from flows.commands.completion import completion
from flows.commands.doctor import doctor
from flows.commands.edge import edge
from flows.commands.explain import explain
from flows.commands.gate import gate
from flows.commands.init import init
from flows.commands.labels import labels
from flows.commands.monitor import monitor, retrain
from flows.commands.options import ROOT, json_option, policy_option, quiet_option
from flows.commands.release import approvals, approve, audit, demote, history, reconcile, rollback
from flows.commands.replay import replay
from flows.commands.report import report
from flows.commands.reproduce import join, reproduce
from flows.commands.sections import EXIT_STATUS, Sections
from flows.commands.serve import serve, shadow
from flows.commands.status import status
from flows.commands.up import up
from flows.commands.watch import watch

if TYPE_CHECKING:
    from pipelines.settings import Settings

DEMO = ROOT / "infra" / "datasets" / "flights.yaml"
_FULL = (errno.ENOSPC, errno.EDQUOT)  # a write into an open file fails so, without the file's name

_policy = policy_option("What each stage asks.")
bootstrap_option = click.option(
    "--bootstrap",
    metavar="REASON",
    help="Why the first model (the dense incumbent) may go live; needed once, when nothing is live yet.",
)


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_STATUS)
@click.version_option(package_name="dankai", message="dankai %(version)s")
def dankai() -> None:
    """Take a sparse-attention model from inference pilot through training to edge, as far as its KPIs allow.

    \b
    Examples:
      dankai demo                        the whole rollout on built-in flight data
      dankai init sensors.csv            a dataset file for your own table, then:
      dankai rollout run sensors.yaml --bootstrap "first model"
      dankai status                      what is live, since when, why, and what waits
      dankai doctor                      what is missing on this machine, and the fix
    """


@click.command(short_help="The whole rollout on built-in flight data; minutes.")
@_policy
@quiet_option
@json_option
def demo(policy: Path, quiet: bool, as_json: bool) -> None:
    """Run the whole rollout on the flights of 2013 that come with the package; four minutes on two cores.

    \b
    Example:
      dankai demo
    """
    _run(DEMO, policy, quiet, as_json, "demo: the dense incumbent, which sparse inference has to match")


@click.group(short_help="Take a dataset's model up the stages.")
def rollout() -> None:
    """Take a dataset's model up the stages.

    \b
    Example:
      dankai rollout run infra/datasets/etth1.yaml --bootstrap "dense model in use since May"
    """


@rollout.command("run")
@click.argument("dataset", type=click.Path(path_type=Path))
@_policy
@quiet_option
@json_option
@bootstrap_option
def run(dataset: Path, policy: Path, quiet: bool, as_json: bool, bootstrap: str | None) -> None:
    """Run the staged rollout that DATASET (a YAML file) describes; run again to go on after a stop.

    \b
    Example:
      dankai rollout run infra/datasets/server_machines.yaml --bootstrap "dense model in use since May"
    """
    _run(dataset, policy, quiet, as_json, bootstrap)


@click.command(short_help="MLflow's pages over every run that was tracked here.")
@click.option("--port", default=5000, show_default=True, help="Port on this machine.")
def ui(port: int) -> None:
    """Open the MLflow UI on everything that was tracked here, at http://127.0.0.1 and the port.

    Where MLFLOW_TRACKING_URI names a server, that server has its own: its address is told.

    \b
    Examples:
      dankai ui
      dankai ui --port 5005
    """
    from pipelines.addresses import require_answer, without_password
    from pipelines.signing import without_secrets

    settings = _settings()
    if settings.tracking_uri.startswith("http"):
        click.echo(f"MLflow UI: {without_password(settings.tracking_uri)}")
        return
    require_answer(settings.tracking_uri)
    command = ["mlflow", "server", "--backend-store-uri", settings.tracking_uri, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", str(settings.artifacts)]
    click.echo(f"MLflow UI: http://127.0.0.1:{port}  (Ctrl-C stops it)", err=True)
    os.execvpe(str(Path(sys.executable).with_name("mlflow")), command, without_secrets(os.environ))


def _run(dataset: Path, policy: Path, quiet: bool, as_json: bool, bootstrap: str | None) -> None:
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # what fails is said once, by this command
    settings = _settings()
    name = _check(dataset, policy, settings, bootstrap)
    from pipelines.addresses import require_answer
    from pipelines.job import training_turn

    if settings.prefect_api_url is not None:
        require_answer(settings.prefect_api_url, "PREFECT_API_URL")
    with training_turn(settings, name, wait=False):
        from flows.rollout import rollout as rollout_flow
        from flows.servers import stop_orphans
        from flows.tables import print_summary

        stop_orphans()
        # Called as a function, a flow gives what its last state holds.
        summary: Any = rollout_flow(str(dataset), str(policy), quiet, bootstrap)
        if as_json:
            click.echo(summary.model_dump_json(indent=1))
        else:
            print_summary(summary, settings)


def _check(dataset: Path, policy: Path, settings: "Settings", bootstrap: str | None) -> str:
    """Name of the dataset. Whatever is wrong with files, table or log is said before anything is written."""
    from pipelines.data.spec import load_spec
    from pipelines.preparation import refuse_unusable
    from pipelines.release import refuse_without_bootstrap
    from pipelines.release_log import ReleaseLog
    from validation.policy import load_policy

    spec = load_spec(dataset)
    load_policy(policy)
    refuse_unusable(spec, settings)
    refuse_without_bootstrap(ReleaseLog.of(settings), spec.name, bootstrap)
    return spec.name


def _settings() -> "Settings":
    from pipelines.settings import load_settings, quiet_environment

    settings = load_settings()
    quiet_environment(settings)
    return settings


dankai.add_sections(
    {
        "First steps": (demo, init, rollout, doctor),
        "What is going on": (status, watch, history, ui),
        "Why did it decide so": (report, gate, explain, budget, bias),
        "Say yes, or take back": (approve, approvals, rollback, demote),
        "Real requests": (serve, shadow),
        "On devices": (edge,),
        "Months of operation": (up, monitor, labels, retrain, replay),
        "Trust and repair": (audit, reconcile, reproduce),
        "Speed and machines": (bench, join),
        "The shell": (completion,),
    }
)
for command in (*edge_run.COMMANDS, *edge_update.COMMANDS, *edge_rollout.COMMANDS):
    edge.add_command(command)


def main() -> None:
    """Entry point; the exit statuses are those of flows.commands.sections.EXIT_STATUS."""
    sys.exit(_answer(dankai))


def _answer(command: Callable[..., object]) -> int:
    from pipelines.escaping import printable
    from validation.errors import InputError

    try:
        command(standalone_mode=False)
    except InputError as error:
        click.echo(printable(f"dankai: {error}"), err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise  # no file of the user's: a fault of ours, which is better seen whole
        click.echo(printable(f"dankai: {_refused_by_system(error)}"), err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("dankai: stopped; run the same command again to go on from here", err=True)
        return 130
    return 0


def _refused_by_system(error: OSError) -> str:
    """What the operating system would not do, where, and what to do about it."""
    place = error.filename if error.filename is not None else os.environ.get("DANKAI_HOME") or ".dankai"
    fix = "make room on the disk" if error.errno in _FULL else "let this account read and write there"
    return f"{place}: {error.strerror}; {fix}, or set DANKAI_HOME to another folder"
