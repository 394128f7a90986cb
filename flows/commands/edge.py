"""`dankai edge`: the model on a device."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import json_option

if TYPE_CHECKING:
    from pipelines.edge.bundle import Bundle
    from pipelines.edge.precision import Precision


@click.group()
def edge() -> None:
    """Build a signed bundle of a model, and run it on a device.

    \b
    Example:
      dankai edge build infra/datasets/flights.yaml --out bundles
    """


@edge.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--version", type=click.IntRange(1), help="Registered version.  [default: the live model]")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder of a checkpoint trained here.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int16"]),
    help="Of the layers' products; the selector's stay fp32.  [default: the dataset's edge_precision]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder that gets the bundle, named by content.")
@json_option
def build(
    dataset: Path,
    version: int | None,
    checkpoint: Path | None,
    precision: "Precision | None",
    out: Path | None,
    as_json: bool,
) -> None:
    """Export DATASET's live model, compare it with the checkpoint, and sign it for devices.

    The key is the installation's own: DANKAI_SIGNING_KEY, else keys/signing.key in DANKAI_HOME. A bundle
    whose parity does not hold is written and said to be so, with exit status 0: the edge gate judges it.

    \b
    Examples:
      dankai edge build infra/datasets/flights.yaml
      dankai edge build infra/datasets/flights.yaml --version 3 --out /media/usb
    """
    if version is not None and checkpoint is not None:
        raise click.UsageError("give --version or --checkpoint, not both")
    from flows.commands.options import writable_folder
    from pipelines.data.spec import load_spec
    from pipelines.edge.building import build_edge_bundle, find_checkpoint
    from pipelines.settings import load_settings, quiet_environment

    spec, settings = load_spec(dataset), load_settings()
    quiet_environment(settings)
    found = find_checkpoint(settings, spec.name, version, checkpoint)
    parent = writable_folder(out) if out else None
    bundle = build_edge_bundle(settings, spec, found, parent, precision)
    click.echo(bundle.model_dump_json(indent=1) if as_json else _said(bundle))


def _said(bundle: "Bundle") -> str:
    report = bundle.parity
    holds = "holds" if report.passed else "does NOT hold"
    return (
        f"{bundle.folder}\n"
        f"  {bundle.size_bytes:,} bytes, signed by {bundle.key_id}; density {bundle.density:g}, "
        f"{report.precision}\n"
        f"  parity {holds}: {report.same_blocks_error:.2g} off on the same blocks of {report.num_windows} "
        f"windows, {report.tolerance:.2g} allowed; {report.max_abs_error:.2g} with ties, "
        f"{report.answer_tolerance:.2g} allowed"
    )
