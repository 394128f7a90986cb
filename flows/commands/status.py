"""`dankai status`: one screen that answers what is live, since when, why, and what wants attention."""

import json
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option
from pipelines.clock import to_the_minute

if TYPE_CHECKING:
    from pipelines.settings import Settings
    from pipelines.status import Standing


@click.command(short_help="What is live, since when, why, what waits, what is due next.")
@json_option
def status(as_json: bool) -> None:
    """Say of every dataset what is live, since when and why, what waits for people, the last verdict, the
    newest batch and alerts; then what runs now and what is due next.

    \b
    Examples:
      dankai status
      dankai status --json | jq '.datasets[] | select(.waiting != "")'
    """
    from pipelines.settings import load_settings
    from pipelines.status import standings

    settings = load_settings()
    found, running, due = standings(settings), _running(settings), _due(settings)
    if as_json:
        rows = [each.model_dump() for each in found]
        click.echo(json.dumps({"datasets": rows, "running": running, "next": due}, indent=1))
        return
    _print(found, settings)
    click.echo(f"running   {running or 'nothing'}")
    click.echo(f"next      {due}")


def _running(settings: "Settings") -> str:
    """The run that began last, while its process is there."""
    from flows.watching import progress_text, seen
    from pipelines.escaping import printable
    from pipelines.journal import is_running, lines, newest

    path = newest(settings.home)
    if path is None or not is_running(next(lines(path), {})):
        return ""
    found = seen(lines(path))
    now = "; ".join(progress_text(line) for line in found.now) or "between two steps"
    return printable(f"{found.dataset}: {now} (dankai watch)")


def _due(settings: "Settings") -> str:
    from flows.prefect_api import next_run
    from pipelines.addresses import without_password

    if settings.prefect_api_url is None:
        return "nothing is scheduled: PREFECT_API_URL names no server (dankai up starts one)"
    try:
        found = next_run(settings.prefect_api_url)
    except (OSError, ValueError, KeyError) as error:
        address = without_password(settings.prefect_api_url)
        return f"unknown: {address} does not answer ({error}); see: dankai doctor"
    return f"{found[0]} at {to_the_minute(found[1])} UTC" if found else "nothing is scheduled there"


def _print(found: "list[Standing]", settings: "Settings") -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console
    from pipelines.escaping import printable

    if not found:
        click.echo(
            f"Nothing was ever let in here ({settings.home}). Start with: dankai demo, or: dankai init TABLE"
        )
    for each in found:
        table = Table(title=escape(_headline(each)), title_justify="left", show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, said in _lines(each).items():
            if said:
                table.add_row(name, escape(printable(said)), style="bold red" if name == "ALERT" else None)
        console().print(table)


def _headline(each: "Standing") -> str:
    live = f"version {each.live} is live at stage {each.stage}" if each.live else "nothing is live"
    return f"{each.dataset}: {live}"


def _lines(each: "Standing") -> dict[str, str]:
    back = f"version {each.last_green}" if each.last_green else ""
    trial = f"version {each.challenger}" if each.challenger else ""
    return {
        "since": f"{to_the_minute(each.since)} UTC" if each.since else "",
        "why": each.why,
        "way back": back or "none: there is no earlier release",
        "on trial": trial,
        "verdict": each.verdict,
        "waits": each.waiting,
        "newest batch": each.monitor or "none was looked at yet",
        "ALERT": each.alert,
    }
