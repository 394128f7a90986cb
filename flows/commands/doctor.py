"""`dankai doctor`: is everything here that dankai needs, and if not, what to do."""

import sys
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option

if TYPE_CHECKING:
    from flows.doctor import Finding

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(short_help="What is missing on this machine, and the fix.")
@json_option
def doctor(as_json: bool) -> None:
    """Check versions, GPU, folders, disk, keys, databases, servers, ports, telemetry and clock.

    Looks and changes nothing; takes under two seconds, whatever does not answer. Exit status 2 where
    something has to be mended before dankai can work, 0 otherwise, warnings included.

    \b
    Examples:
      dankai doctor
      dankai doctor --json | jq '.[] | select(.state != "ok")'
    """
    import json
    from dataclasses import asdict

    from flows.doctor import examine

    found = examine()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
    else:
        _print(found)
    if any(each.state == "fail" for each in found):
        sys.exit(2)


def _print(found: "list[Finding]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console
    from pipelines.escaping import printable

    table = Table(show_lines=False)
    for name in ("", "what", "seen", "fix"):
        table.add_column(name, overflow="fold", no_wrap=name in ("", "what"))
    for each in found:
        cells = (escape(printable(cell)) for cell in (each.name, each.said, each.fix))
        table.add_row(f"[{_COLORS[each.state]}]{each.state}[/]", *cells)
    console().print(table)
    wrong = sum(each.state != "ok" for each in found)
    click.echo(f"{wrong} of {len(found)} want attention" if wrong else "everything is as it should be")
