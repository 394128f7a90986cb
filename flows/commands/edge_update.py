"""`dankai edge update` and `dankai edge sync`: what a device gets and what it leaves."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flows.commands.edge_run import device_option, key_option, refusals, trusted_key


def _name_option() -> Callable[..., Any]:
    return click.option(
        "--name",
        default=socket.gethostname,
        show_default="this machine's",
        envvar="DANKAI_DEVICE_NAME",
        help="Name of this device in the store.",
    )


@click.command()
@click.argument("source")
@key_option()
@device_option()
@_name_option()
@click.option("--allow-rollback", is_flag=True, help="Take a bundle that is older than one that ran here.")
def update(source: str, key: Path, device: Path, name: str, allow_rollback: bool) -> None:
    """Install the bundle in SOURCE: its folder, its .zip, or a store that offers one.

    A store is a folder, http(s)://… or s3://bucket/prefix. The bundle has to be signed, whole, not older than
    what ran here, and to answer its golden input on this device in time and within memory; else nothing
    changes. An agent that runs takes it up by itself; the bundle before is kept to go back to.

    \b
    Examples:
      dankai edge update /media/usb/1f2e… --key ada.pub
      dankai edge update https://plant.example/edge --key ada.pub --name line-3
    """
    from pipelines.edge.offers import follow
    from pipelines.edge.stores import open_store
    from pipelines.edge.updates import install, installed

    trusted, before = trusted_key(key), installed(device).current
    with refusals():
        if is_bundle(source):
            state = install(device, Path(source), trusted, allow_rollback=allow_rollback)
        else:
            state = follow(device, name, open_store(source), trusted)
    changed = f"before: {before or 'none'}" if state.current != before else "as before"
    click.echo(f"{state.current or 'nothing'} is installed ({changed})")


@click.command()
@click.argument("store")
@device_option()
@_name_option()
def sync(store: str, device: Path, name: str) -> None:
    """Leave in STORE what the device has to tell: how its bundle does, sums, and audited rows.

    A store is a folder, http(s)://… (PUT) or s3://bucket/prefix. What is interrupted is sent again.

    \b
    Example:
      dankai edge sync s3://plant/edge --name line-3
    """
    from pipelines.edge.stores import open_store
    from pipelines.edge.sync import sync

    with refusals():
        sent = sync(device, name, open_store(store))
    lost = f"; {sent.dropped_rows} audited rows found no room" if sent.dropped_rows else ""
    click.echo(f"sent {sent.sums} files of sums, {sent.rows} of audited rows{lost}")


def is_bundle(source: str) -> bool:
    """Whether SOURCE is one bundle rather than a store."""
    from pipelines.edge.verification import MANIFEST

    return (source.endswith(".zip") and "://" not in source) or (Path(source) / MANIFEST).exists()


COMMANDS = (update, sync)
