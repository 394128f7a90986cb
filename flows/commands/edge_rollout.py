"""`dankai edge publish`, `rollout`, `collect`: the server's side of a fleet of devices."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.edge_run import refusals
from flows.commands.options import json_option, policy_option

if TYPE_CHECKING:
    from pipelines.edge.rings import RolloutReport


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("store")
def publish(bundle: Path, store: str) -> None:
    """Offer BUNDLE to every device that asks STORE, at once. `dankai edge rollout` goes ring by ring.

    STORE: a folder, http(s)://… (PUT) or s3://bucket/prefix. The offer is signed by this installation's key.

    \b
    Example:
      dankai edge publish bundles/1f2e… shared/edge
    """
    from flows.commands.options import POLICY
    from pipelines.edge.offers import Offer, make_offer, publish, read_offer
    from pipelines.edge.rings import device_limits
    from pipelines.edge.stores import open_store
    from pipelines.settings import load_settings
    from pipelines.signing import load_key
    from validation.policy import load_policy

    key, place = load_key(load_settings().keys), open_store(store)
    with refusals():
        package, before = publish(place, bundle, key.public_key()), read_offer(place, key.public_key())
    sequence = before.sequence + 1 if before else 1
    make_offer(place, Offer(sequence, package, None, None, device_limits(load_policy(POLICY))), key)
    click.echo(f"offer {sequence}: {package.bundle} to every device")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.argument("store", required=False)
@click.option(
    "--device", "devices", multiple=True, help="Its name; several.  [default: all that left reports]"
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="How long a ring waits when nothing new comes.  [default: quiet_minutes of the policy]",
)
@click.option(
    "--simulate", type=click.IntRange(20, 500), metavar="N", help="Roll out to N simulated devices."
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the simulation's results go (JSON).")
@policy_option("The edge stage's bounds are those of every ring.")
@json_option
def rollout(
    bundle: Path | None,
    store: str | None,
    devices: tuple[str, ...],
    patience: float | None,
    simulate: int | None,
    out: Path | None,
    policy: Path,
    as_json: bool,
) -> None:
    """Take BUNDLE to one device, a tenth of them, all; in between the edge gate judges what they report.

    Where a ring does not pass, every device gets the last bundle back that all of them had. Exit status 1
    then. A ring waits as long as devices answer, by the policy's `rings`. Run it again after an interruption:
    it begins with the first ring.

    \b
    Examples:
      dankai edge rollout bundles/1f2e… s3://plant/edge
      dankai edge rollout --simulate 50 --out rings.json
    """
    if simulate is not None:
        from pipelines.benchmarks.rings import write

        write(simulate, out, policy)
        return
    if bundle is None or store is None:
        raise click.UsageError("name BUNDLE and STORE, or --simulate")
    report = _rolled_out(bundle, store, devices, patience, policy)
    if as_json:
        click.echo(report.model_dump_json(indent=1))
    else:
        on_it = sum(name == report.bundle for name in report.ended_on.values())
        click.echo(f"{report.outcome}: {on_it} of {len(report.ended_on)} devices run {report.bundle}")
    sys.exit(0 if report.outcome == "PASS" else 1)


def _rolled_out(
    bundle: Path, store: str, devices: tuple[str, ...], patience: float | None, policy: Path
) -> "RolloutReport":
    from functools import partial

    from pipelines.edge.offers import publish
    from pipelines.edge.rings import Patience, Subject, ring_order, roll_out
    from pipelines.edge.stores import open_store
    from pipelines.edge.verification import read_bundle
    from pipelines.settings import load_settings
    from pipelines.signing import load_key
    from validation.errors import InputError
    from validation.policy import load_policy

    key, place, rules = load_key(load_settings().keys), open_store(store), load_policy(policy)
    with refusals():
        manifest, _ = read_bundle(bundle, key.public_key())
        package = publish(place, bundle, key.public_key())
    names = devices or tuple(sorted({name.split("/")[1] for name in place.names("devices/")}))
    if not names:
        raise InputError(
            f"{store}: no device left a report there; run dankai edge sync on them, or name them"
        )
    order, waits = ring_order(place, names, package.bundle, key.public_key()), Patience.of(rules)
    if patience is not None:
        waits = waits._replace(quiet_seconds=patience * 60)
    say = partial(click.echo, err=True)
    return roll_out(place, Subject.of(package, manifest), order, rules, key, waits, say)


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("store")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder that gets the batches.")
@json_option
def collect(dataset: Path, store: str, out: Path, as_json: bool) -> None:
    """Turn what devices left in STORE into batches that `dankai monitor DATASET` takes.

    One batch per stretch of audited rows, named in order; and what each device says of itself.

    \b
    Example:
      dankai edge collect infra/datasets/flights.yaml s3://plant/edge --out incoming
    """
    from pipelines.data.spec import load_spec
    from pipelines.edge.collecting import collect
    from pipelines.edge.stores import open_store

    found = collect(open_store(store), load_spec(dataset), out)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
        return
    for batch in found.batches:
        click.echo(batch)
    for name in found.damaged:
        click.echo(f"left out: {name} is not as a device wrote it", err=True)
    for each in found.devices:
        moved = f", scores moved (stability index {each.score_shift:.2f})" if each.has_shifted else ""
        refused = sum(each.errors.values())
        said = f"{each.lines} lines, {each.scored} scored, {refused} refused, {each.failed} windows failed"
        click.echo(f"{each.device}: {said}, {each.dropped_rows} audited rows dropped{moved}", err=True)


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--last", type=click.IntRange(1), default=10_000, show_default=True, help="Rows, the newest.")
def rows(dataset: Path, last: int) -> None:
    """Print rows of DATASET's source as a device takes them: JSON lines, to try a bundle with.

    \b
    Example:
      dankai edge rows infra/datasets/flights.yaml > rows.jsonl
    """
    from pipelines.data.spec import load_spec
    from pipelines.edge.collecting import device_rows

    click.echo(device_rows(load_spec(dataset), last), nl=False)


COMMANDS = (publish, rollout, collect, rows)
