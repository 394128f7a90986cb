"""The release log for people and for programs. Whatever people wrote is shown as written, never obeyed."""

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import click

from pipelines.approvals import waiting_sentence
from pipelines.escaping import printable
from pipelines.history import Audit, let_in
from pipelines.rollout import RolloutState, replay

if TYPE_CHECKING:
    from pipelines.monitoring import Alert
    from pipelines.release_log import ReleaseEntry

_WIDTH = 150  # of a log or a pipe, which do not wrap
_SHORT = 12


def print_history(
    entries: "list[ReleaseEntry]", names: list[str], at: datetime | None, alerts: "Mapping[str, Alert]"
) -> None:
    """Per dataset: what is (or was) live, on what evidence, and its alert; below, every decision."""
    if at is not None:
        click.echo(f"As of {at.isoformat(timespec='seconds')}")
    if not names:
        click.echo("The release log is empty: nothing was ever let in")
    for name in names:
        state = replay(entries, name)
        click.echo(_headline(state))
        if (entry := let_in(entries, name)) is not None:
            for line in _evidence(entry):
                click.echo(f"  {line}")
        if name in alerts:
            click.echo(printable(f"  ALERT {alerts[name].sentence()}"))
        if state.pending is not None:
            click.echo(f"  {waiting_sentence(state, state.pending)}")
    _print_decisions([entry for entry in entries if entry.decision.dataset in names])


def print_json(
    entries: "list[ReleaseEntry]", names: list[str], at: datetime | None, alerts: "Mapping[str, Alert]"
) -> None:
    """The same for programs: states, open alerts, and the entries as they stand in the log."""
    content = {
        "at": at.isoformat() if at else None,
        "datasets": {name: replay(entries, name).model_dump(mode="json") for name in names},
        "alerts": {name: alert.model_dump(mode="json") for name, alert in alerts.items()},
        "entries": [entry.model_dump(mode="json") for entry in entries if entry.decision.dataset in names],
    }
    click.echo(json.dumps(content, indent=1))


def print_audit(found: Audit) -> None:
    """What was checked, and what was not."""
    click.echo(
        f"{found.place}: {found.num_entries} entries hold: chain, hashes, signatures, every move legal"
    )
    click.echo(f"signed by {', '.join(found.keys) or 'nobody'}")
    for name, state in found.datasets.items():
        click.echo(f"{name}: stage {state.stage}, version {state.champion} is live")
    compared = (
        "MLflow has seen no entry that is missing" if found.compared_with_registry else "MLflow was not asked"
    )
    click.echo(f"{compared}; head {found.head}: note it elsewhere, and pass it as --head next time")
    for note in found.notes:
        click.echo(printable(f"note: {note}"))


def _headline(state: RolloutState) -> str:
    if state.live is None:
        return f"{state.dataset}: nothing is live"
    back = f"; last green: version {state.last_green.champion}" if state.last_green else ""
    trial = f"; challenger: version {state.challenger}" if state.challenger else ""
    return f"{state.dataset}: version {state.champion} is live at stage {state.stage}{back}{trial}"


def _evidence(entry: "ReleaseEntry") -> list[str]:
    decision = entry.decision
    hashes = {
        "checkpoint": decision.checkpoint,
        "snapshot": decision.snapshot,
        "verdict": decision.verdict or "none",
        "policy": decision.policy or "none",
        "code": entry.code,
    }
    shown = ", ".join(f"{name} {value[:_SHORT]}" for name, value in hashes.items())
    return [
        printable(f"since {entry.time} by {decision.action} of {_who(entry)}: {decision.reason}"),
        shown,
    ]


def _print_decisions(entries: "list[ReleaseEntry]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not entries:
        return
    table = Table(title="Decisions, oldest first", title_justify="left")
    for name in ("entry", "time (UTC)", "dataset", "decision", "from -> to", "version", "who", "why"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        decision = entry.decision
        cells = (
            f"{entry.sequence} {entry.hash[:8]}",
            entry.time[:19].replace("T", " "),
            decision.dataset,
            str(decision.action),
            f"{decision.from_stage} -> {decision.to_stage}",
            str(decision.version),
            _who(entry),
            decision.reason,
        )
        table.add_row(*(escape(printable(cell)) for cell in cells))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def _who(entry: "ReleaseEntry") -> str:
    decision = entry.decision
    if decision.automatic:
        return f"{decision.actor} (automatic)"
    return f"{decision.actor} ({decision.account})" if decision.account else decision.actor
