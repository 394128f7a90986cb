"""`dankai bench edge`: the edge runtime against the fastest dense reading on this processor."""

from pathlib import Path

import click

from flows.commands.options import out_option, writable_folder


@click.command()
@out_option("Folder for the results file; one that is there is replaced.")
@click.option(
    "--steps", multiple=True, type=click.IntRange(64), help="Length; may be repeated.  [default: 1k to 64k]"
)
@click.option("--streaming", is_flag=True, help="What a new step costs a stream instead; one thread.")
@click.option("--quality", is_flag=True, help="What arrives of real models at each precision instead.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1, 64))
def edge(out: Path, steps: tuple[int, ...], streaming: bool, quality: bool, threads: int) -> None:
    """Time and peak memory of an encoder of width 256 on this CPU, sparse and dense; minutes, an hour at 64k.

    \b
    Examples:
      dankai bench edge
      dankai bench edge --steps 1024 --steps 4096
      dankai bench edge --streaming
      dankai bench edge --quality
    """
    folder = writable_folder(out)
    if streaming:
        from pipelines.benchmarks.edge import streaming as stream

        stream.main(folder, say=click.echo)
        click.echo(f"wrote {folder / 'edge_streaming.json'}", err=True)
        return
    if quality:
        from pipelines.benchmarks.edge import quality as real

        real.main(folder, say=click.echo)
        click.echo(f"wrote {folder / 'edge_quality.json'}", err=True)
        return
    from pipelines.benchmarks.edge.speed import LENGTHS, main

    main(folder, steps or LENGTHS, threads, click.echo)
    click.echo(f"wrote {folder / 'edge.json'}", err=True)
