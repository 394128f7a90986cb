"""`dankai bench drift`: how often the drift detector cries without a fire, and how soon it does at one."""

from pathlib import Path

import click

from flows.commands.options import json_option, out_option, policy_option, results_at, writable_folder


@click.command()
@out_option("Folder for drift.json; one that is there is replaced.")
@policy_option("Its `drift:` section is what is reported.")
@json_option
def drift(out: Path, policy: Path, as_json: bool) -> None:
    """False alarms a month and delay to detection, over real months and planted shifts. A CPU does; minutes.

    Needs the server machines and the transformer's series below DANKAI_DATA; the flights come along.

    \b
    Example:
      dankai bench drift --out results
    """
    from validation.policy import load_policy

    loaded = load_policy(policy)
    folder = writable_folder(out)
    from pipelines.benchmarks.drift.bench import main

    with results_at(folder / "drift.json", as_json):
        main(folder, loaded.drift)
