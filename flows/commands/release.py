"""What was live when, who let it in, and the way back: commands on the release log."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import datasets, json_option, quiet_option

if TYPE_CHECKING:
    from pipelines.release_log import ReleaseEntry, ReleaseLog
    from pipelines.rollout import RolloutState
    from pipelines.settings import Settings

reason_option = click.option("--reason", required=True, help="Why, in one line; kept in the log.")
name_option = click.option(
    "--as", "name", metavar="NAME", help="Who decides; by default the name of this account, kept beside it."
)


@click.command(short_help="What is live, what was live at a date, and every decision.")
@click.argument("dataset", required=False, shell_complete=datasets)
@click.option("--at", metavar="DATE", help="As of this date's end or this time, UTC: 2026-03-01T14:30.")
@json_option
def history(dataset: str | None, at: str | None, as_json: bool) -> None:
    """Say what is live, or what was live at a date, and every decision that led there.

    \b
    Examples:
      dankai history
      dankai history flights --at 2026-03-01
    """
    from flows.history_tables import print_history, print_json
    from pipelines.history import datasets_of, entries_until, parse_instant, refuse_unknown_dataset
    from pipelines.monitoring import open_alert

    instant = parse_instant(at) if at is not None else None
    settings, entries = _settings(), _log().entries()
    if dataset is not None:
        refuse_unknown_dataset(entries, dataset)
    names = [dataset] if dataset else datasets_of(entries)
    then = entries if instant is None else entries_until(entries, instant)
    alerts = {name: open_alert(settings, entries, name) for name in names if instant is None}
    show = print_json if as_json else print_history
    show(then, names, instant, {name: alert for name, alert in alerts.items() if alert is not None})


@click.group(short_help="Check that the release log can be believed.")
def audit() -> None:
    """Check that the release log can be believed.

    \b
    Example:
      dankai audit verify
    """


@audit.command("verify")
@click.option("--head", metavar="HASH", help="An entry noted down elsewhere, which the log must still hold.")
@click.option("--log-only", is_flag=True, help="Do not compare with what MLflow has seen.")
@json_option
def verify(head: str | None, log_only: bool, as_json: bool) -> None:
    """Find any edit, gap, reordering or cut tail; exit status 2 names the line where the log stops holding.

    \b
    A tail that was cut is found by the heads noted in MLflow, and by --head. What cannot be found: a log
    rewritten by somebody who holds the signing key and MLflow's database, unless a head was noted elsewhere.

    \b
    Example:
      dankai audit verify --head 3f2a9c1e
    """
    from flows.history_tables import print_audit
    from pipelines.history import audit as audit_log
    from pipelines.registry import Tracker

    settings, log = _settings(), _log()
    log.entries()  # what is wrong with the log itself is said before MLflow is waited for
    found = audit_log(log, None if log_only else Tracker.open(settings), head)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
    else:
        print_audit(found)


@audit.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_(file: Path) -> None:
    """Take over the entries of a release log FILE into the log in use, byte for byte.

    \b
    Example, after setting DANKAI_DATABASE_URL for the first time:
      dankai audit import .dankai/release_log.jsonl
    """
    from pipelines.release_log import ReleaseLog
    from pipelines.release_store import FileStore, store_of

    settings = _settings()
    log = ReleaseLog(store_of(settings), settings.keys)
    num_lines = log.take_over(FileStore(file))
    click.echo(f"{log.store.place}: {num_lines} entries taken over from {file}")


@click.command(short_help="Answer a promotion that waits; it is judged once more.")
@click.argument("request_id", metavar="ID")
@click.option("--as", "name", metavar="NAME", required=True, help="Who you are; kept in the log.")
@reason_option
@click.option("--decline", is_flag=True, help="Say no: the request is over.")
@quiet_option
def approve(request_id: str, name: str, reason: str, decline: bool, quiet: bool) -> None:
    """Approve the promotion that waits under ID; it is judged once more on the data as it is now.

    \b
    Only if it still passes does it go live. `dankai history` shows what waits.

    \b
    Example:
      dankai approve 3f2a9c1e --as "Ada Lovelace" --reason "reviewed the worst slices, see ticket 4711"
    """
    from flows.progress import progress
    from pipelines.actors import person
    from pipelines.approvals import find_request

    settings, actor = _settings(), person(name)
    find_request(_log(), request_id)
    _require_reason(reason)
    from pipelines.release import answer_request

    with progress(quiet) as report:
        state = answer_request(settings, request_id, actor, reason, not decline, report)
    _say_last_decision(_log(), state)


@click.command(short_help="Ask for approvals in Prefect's UI, until Ctrl-C.")
def approvals() -> None:
    """Ask for approvals in Prefect's UI: a suspended run for each request, until Ctrl-C.

    \b
    Needs PREFECT_API_URL. Names given there are not proven: Prefect's open-source server knows no accounts.

    \b
    Example:
      PREFECT_API_URL=http://127.0.0.1:4200/api dankai approvals
    """
    settings = _settings()
    from validation.errors import InputError

    if settings.prefect_api_url is None:
        raise InputError("PREFECT_API_URL: not set; name a running Prefect server, or use: dankai approve")
    from pipelines.addresses import require_answer

    require_answer(settings.prefect_api_url, "PREFECT_API_URL")
    from flows.approval import serve

    serve()


@click.command(short_help="Put the last green release back live, at once.")
@click.argument("dataset", required=False, shell_complete=datasets)
@reason_option
@name_option
def rollback(dataset: str | None, reason: str, name: str | None) -> None:
    """Put the last green release back live, at once; MLflow's aliases follow by themselves.

    \b
    Example:
      dankai rollback flights --reason "p99 latency doubled since Tuesday"
    """
    from pipelines.actors import person
    from pipelines.decisions import rollback as roll_back
    from pipelines.history import only_dataset, refuse_unknown_dataset
    from pipelines.rollout import replay

    settings, actor, log = _settings(), person(name), _log()
    entries = log.entries()
    if dataset is not None:
        refuse_unknown_dataset(entries, dataset)
    state = roll_back(log, replay(entries, dataset or only_dataset(entries)), actor, reason)
    _say_last_decision(log, state)
    _reconcile_in_background(settings)


@click.command(short_help="Back to a lower stage; what is live stays live.")
@click.argument("dataset", shell_complete=datasets)
@click.option("--to", "stage", required=True, type=click.Choice(["pilot", "training", "edge"]))
@reason_option
@name_option
def demote(dataset: str, stage: str, reason: str, name: str | None) -> None:
    """Take a rollout back to a lower stage; what is live stays live.

    \b
    Example:
      dankai demote flights --to training --reason "the device profile changed"
    """
    from pipelines.actors import person
    from pipelines.decisions import demote as take_down
    from pipelines.history import refuse_unknown_dataset
    from pipelines.release_log import Stage
    from pipelines.rollout import replay

    settings, actor, log = _settings(), person(name), _log()
    entries = log.entries()
    refuse_unknown_dataset(entries, dataset)
    _say_last_decision(log, take_down(log, replay(entries, dataset), Stage(stage), actor, reason))
    _reconcile_in_background(settings)


@click.command(short_help="Make MLflow's aliases say what the release log says.")
def reconcile() -> None:
    """Make MLflow's aliases say what the release log says, and report what had been moved by hand.

    \b
    Example:
      dankai reconcile
    """
    from pipelines.escaping import printable
    from pipelines.reconciliation import reconcile as put_right
    from pipelines.registry import Tracker
    from pipelines.release_log import ReleaseLog

    settings, log = _settings(), _log()
    log.entries()
    changes = put_right(ReleaseLog.open(settings), Tracker.open(settings))
    for change in changes:
        click.echo(printable(change.sentence()))
    if not changes:
        click.echo("MLflow's aliases agree with the release log")


def _settings() -> "Settings":
    from pipelines.settings import load_settings, quiet_environment

    settings = load_settings()
    quiet_environment(settings)
    return settings


def _log() -> "ReleaseLog":
    from pipelines.release_log import ReleaseLog

    return ReleaseLog.of(_settings())


def _require_reason(reason: str) -> None:
    from validation.errors import InputError

    if not reason.strip():
        raise InputError("--reason: say why in one line; it is kept in the release log")


def _say_last_decision(log: "ReleaseLog", state: "RolloutState") -> None:
    """The entry that was just written, where the rollout stands, and what still waits."""
    from pipelines.approvals import waiting_sentence
    from pipelines.escaping import printable

    entry = _entry(log, state.head)
    decision = entry.decision
    click.echo(f"{state.dataset}: stage {state.stage}, version {state.champion} is live")
    who = f"{decision.actor} ({decision.account})" if decision.account else decision.actor
    said = f"entry {entry.sequence} ({entry.hash[:12]}): {decision.action} by {who}: {decision.reason}"
    click.echo(printable(said))
    if state.pending is not None:
        click.echo(waiting_sentence(state, state.pending))


def _entry(log: "ReleaseLog", head: str) -> "ReleaseEntry":
    return next(entry for entry in log.entries() if entry.hash == head)


def _reconcile_in_background(settings: "Settings") -> None:
    """MLflow takes seconds to import, or may be down: a rollback waits for neither."""
    import subprocess

    report = settings.home / "reconcile.log"
    settings.home.mkdir(parents=True, exist_ok=True)
    with report.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-c", "from flows.cli import main; main()", "reconcile"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    click.echo(f"MLflow's aliases follow in the background ({report}); if MLflow is down: dankai reconcile")
