"""`dankai reproduce`: a stored training, done again; `dankai join`: another machine's processes for a
training."""

import os
import time
from contextlib import suppress
from pathlib import Path

import click

from flows.commands.options import json_option, quiet_option


@click.command(short_help="Train a stored run again and judge the difference.")
@click.argument("run")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="Relative difference of the best validation loss that still counts as the same.",
)
@quiet_option
@json_option
def reproduce(run: str, tolerance: float, quiet: bool, as_json: bool) -> None:
    """Train RUN again from its snapshot, lock and seed, and judge the difference.

    RUN is the id of a training's MLflow run or its weights' SHA-256, at least six letters of it. Nothing of
    it is kept or released. PASS and FAIL both exit 0.

    \b
    Example:
      dankai reproduce 3f9a2c11d0
    """
    from flows.progress import progress
    from pipelines.reproduction import reproduce as again
    from pipelines.settings import load_settings, quiet_environment

    settings = load_settings()
    quiet_environment(settings)
    with progress(quiet) as report:
        found = again(settings, run, tolerance, report)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
        return
    click.echo(f"{found.outcome}: {found.reason}")
    click.echo(f"weights          {found.weights[:12]} then, {found.weights_again[:12]} now")
    click.echo(f"largest change   {found.largest_difference:.3g} of any weight")
    click.echo(f"validation loss  {found.loss:.6g} then, {found.loss_again:.6g} now")


@click.command(short_help="Lend this machine to another one's trainings.")
@click.option("--once", is_flag=True, help="End after one training.")
def join(once: bool) -> None:
    """Lend this machine's devices to trainings that another machine starts (training.nodes in a dataset
    file).

    All machines see one DANKAI_HOME and have the same MASTER_ADDR and MASTER_PORT; NODE_RANK numbers the
    others from 1. Ctrl-C ends it.

    \b
    Example:
      NODE_RANK=1 MASTER_ADDR=10.0.0.4 MASTER_PORT=29500 dankai join
    """
    from pipelines.ranks import INVITATION
    from pipelines.ranks import join as run_ranks
    from pipelines.settings import load_settings
    from validation.errors import InputError

    node = os.environ.get("NODE_RANK", "")
    if not node.isdecimal() or int(node) < 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise InputError("join: set NODE_RANK (from 1), MASTER_ADDR and MASTER_PORT as on the first machine")
    home, answered = load_settings().home, set[tuple[Path, int]]()
    while not (once and answered):
        for invitation in _invitations(home, INVITATION) - answered:
            answered.add(invitation)
            click.echo(f"joining {invitation[0].parent.name}", err=True)
            try:
                run_ranks(invitation[0], int(node))
            except InputError as error:
                click.echo(f"dankai: {error}", err=True)
        time.sleep(0.5)


def _invitations(home: Path, name: str) -> set[tuple[Path, int]]:
    """Those open now, and when each was made: a training that was killed invites again."""
    found = set()
    for path in home.glob(f"datasets/*/models/*/{name}"):
        with suppress(FileNotFoundError):  # it was taken back meanwhile
            found.add((path, path.stat().st_mtime_ns))
    return found
