"""`dankai bench`: measure on this machine what the documentation claims."""

from pathlib import Path

import click

from flows.commands.bench_adaptation import adaptation
from flows.commands.bench_drift import drift
from flows.commands.bench_edge import edge
from flows.commands.bench_quality import quality
from flows.commands.bench_real_data import real_data
from flows.commands.options import json_option, out_option, results_at, writable_folder

_out = out_option("Folder for the results file; one that is there is replaced.")


@click.group(short_help="Measure speed, memory and accuracy on this machine.")
def bench() -> None:
    """Measure speed, memory and accuracy on this machine; print a table and write it as JSON.

    \b
    Examples:
      dankai bench attention              attention alone, against dense and FlexAttention
      dankai bench model --out results    the whole encoder, inference and training
      dankai bench quality --quick        accuracy against dense, controls and an oracle
      dankai bench real-data --workers 9  accuracy on flights, server machines and ETTh1
      dankai bench adaptation             a new site with little data
      dankai bench data                   a hundred million rows in bounded memory
      dankai bench parallel               training and inference on several GPUs
      dankai bench drift                  the drift detector as a smoke alarm
      dankai bench edge                   the edge runtime against dense on this CPU
    """


bench.add_command(adaptation)
bench.add_command(quality)
bench.add_command(drift)
bench.add_command(edge)
bench.add_command(real_data)


@bench.command()
@_out
@json_option
def attention(out: Path, as_json: bool) -> None:
    """Attention against dense and FlexAttention; one CUDA GPU, minutes.

    \b
    Example:
      dankai bench attention --out results
    """
    _require_gpu("attention")
    folder = writable_folder(out)
    from pipelines.benchmarks.attention import main

    with results_at(folder / "attention.json", as_json):
        main(folder)


@bench.command()
@_out
@json_option
def model(out: Path, as_json: bool) -> None:
    """The encoder's speed and peak memory; one CUDA GPU, minutes.

    \b
    Example:
      dankai bench model --out results
    """
    _require_gpu("model")
    folder = writable_folder(out)
    from pipelines.benchmarks.model import main

    with results_at(folder / "model.json", as_json):
        main(folder)


@bench.command()
@_out
@click.option("--rows", default=100_000_000, show_default=True, type=click.IntRange(min=1_000_000))
@click.option(
    "--place",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with room for the generated files, 150 bytes a row.  [default: the system's temporary one]",
)
@json_option
def data(out: Path, rows: int, place: Path | None, as_json: bool) -> None:
    """Snapshot, validation and windows of a generated table: peak memory, and rows a second; minutes.

    \b
    Example:
      dankai bench data --rows 10000000 --place /var/tmp
    """
    folder = writable_folder(out)
    from pipelines.benchmarks.data import main

    with results_at(folder / "data.json", as_json):
        main(folder, rows, place)


@bench.command()
@_out
@json_option
def parallel(out: Path, as_json: bool) -> None:
    """Training (DDP, FSDP) and inference over shards of a sequence; two CUDA GPUs or more, minutes.

    \b
    Example:
      dankai bench parallel --out results
    """
    _require_gpu("parallel")
    folder = writable_folder(out)
    from pipelines.benchmarks.parallel import main

    with results_at(folder / "parallel.json", as_json):
        main(folder)


def _require_gpu(command: str) -> None:
    import torch

    from validation.errors import InputError

    if not torch.cuda.is_available():
        raise InputError(
            f"bench {command}: needs one CUDA GPU, and PyTorch {torch.__version__} sees none here; "
            "run it on a machine that has one, with a CUDA build of PyTorch"
        )
