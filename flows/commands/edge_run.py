"""`dankai edge run`, `answers`, `status`: scoring on a device, by the base dependencies alone."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from pipelines.edge.metrics import Record

MIB = 1 << 20


def device_option() -> Callable[..., Any]:
    """`--device FOLDER`: everything that a device writes."""
    return click.option(
        "--device",
        type=click.Path(path_type=Path),
        default=Path(".dankai/device"),
        show_default=True,
        envvar="DANKAI_DEVICE",
        help="Folder of this device: answers, installed bundles, what waits to be sent.",
    )


def key_option() -> Callable[..., Any]:
    """`--key FILE`: whose signature counts."""
    return click.option(
        "--key",
        type=click.Path(path_type=Path),
        required=True,
        envvar="DANKAI_EDGE_KEY",
        help="Public key (PEM) whose signature a bundle must bear; keys/*.pub where it was built.",
    )


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="Its folder.  [default: the installed one]")
@click.option("--input", "source", required=True, help="A .jsonl file, a folder of them, or - for stdin.")
@key_option()
@device_option()
@click.option("--latency-ms", type=click.FloatRange(0, min_open=True), help="Most for 9 windows in 10.")
@click.option("--memory-mib", type=click.FloatRange(0, min_open=True), help="Most for this process.")
@click.option("--ignore", multiple=True, metavar="FIELD", help="A field of the rows that no model reads.")
@click.option("--follow", is_flag=True, help="Wait for more where the input ends.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--audit", type=click.IntRange(1), default=10, show_default=True, metavar="K",
              help="Keep the rows of one in K stretches for the monitor; 1 keeps all.")  # fmt: skip
@click.option("--spool-mib", type=click.IntRange(1), default=64, show_default=True, help="Most of those.")
@click.option("--keep-mib", type=click.IntRange(1), help="Most of old answers.  [default: all are kept]")
def run(
    bundle: Path | None,
    source: str,
    key: Path,
    device: Path,
    latency_ms: float | None,
    memory_mib: float | None,
    ignore: tuple[str, ...],
    follow: bool,
    threads: int,
    audit: int,
    spool_mib: int,
    keep_mib: int | None,
) -> None:
    """Score rows (JSON lines) and print answers (JSON lines), each once, whatever is killed in between.

    A row: {"time": "2013-10-01T05:15:00", "entity": "pump 3", "load": 1.5, "wind": null, …} with every field
    the model reads. An answer repeats file and line, with "scores", or with "error" for a row that cannot be
    used. A row is scored once its window is whole; the first rows of an entity are context and get no score.

    Run the same command again after a stop: it goes on where it was. What was printed when it was killed may
    have been lost with the pipe; `dankai edge answers` has every answer, each once.

    \b
    Examples:
      dankai edge run --bundle bundles/1f… --key ada.pub --input rows.jsonl
      tail -n +1 -F rows.jsonl | dankai edge run --key ada.pub --input - --latency-ms 50
    """
    from pipelines.edge.agent import Options
    from pipelines.edge.governor import Target
    from pipelines.edge.running import Source, run

    memory = memory_mib * MIB if memory_mib else None
    options = Options(
        ignored=ignore,
        target=Target(latency_ms, memory),
        audit_every=audit,
        spool_bytes=spool_mib * MIB,
        keep_bytes=keep_mib * MIB if keep_mib else None,
    )
    whose = Source(source, bundle, trusted_key(key), threads, follow)
    with refusals():
        counts, note = run(device, whose, options, _write_lines)
    click.echo(
        f"{counts.lines} lines: {counts.scored} scored, {counts.errors} refused, {counts.context} context, "
        f"{counts.waiting} wait for their window to be whole",
        err=True,
    )
    if note:
        click.echo(note, err=True)


@click.command()
@device_option()
def answers(device: Path) -> None:
    """Print every answer that the device ever gave and still keeps, in order, each once.

    \b
    Example:
      dankai edge answers > answers.jsonl
    """
    from pipelines.edge.agent import answers_of

    with refusals():
        _write_lines(answers_of(device))


@click.command()
@device_option()
def status(device: Path) -> None:
    """Say what the device runs, what it did, and what waits to be sent (JSON).

    \b
    Example:
      dankai edge status
    """
    import json

    from pipelines.edge.sync import report

    with refusals():
        said = report(device, "this")
    said.pop("latency_ms")
    click.echo(json.dumps(said, indent=1))


class refusals:
    """What a bundle or a store must not be is said in one line, with exit status 2."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        from pipelines.edge.verification import BundleError
        from validation.errors import InputError

        if isinstance(error, BundleError):
            raise InputError(str(error)) from None


def trusted_key(path: Path) -> "Ed25519PublicKey":
    """The key that bundles must be signed with."""
    from pipelines.signing import load_public_key
    from validation.errors import InputError

    if not path.is_file():
        raise InputError(f"{path}: no such file; give the public key of whoever signs bundles")
    return load_public_key(path)


def _write_lines(found: "Any | list[Record]") -> None:
    import json

    try:
        for answer in found:
            sys.stdout.write(json.dumps(answer, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on; the answers are on the disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


COMMANDS = (run, answers, status)
