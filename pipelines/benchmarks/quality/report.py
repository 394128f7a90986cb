"""`python -m pipelines.benchmarks.quality.report`: run what is not measured yet and print the table."""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from pipelines.benchmarks.quality.results import Results, table
from pipelines.benchmarks.quality.suite import phases, work_off
from pipelines.benchmarks.quality.units import FULL, QUICK, Place, Unit

TASKS = ("planted", "pilot", "mqar", "listops")
RESULTS = Path(__file__).parents[1] / "results" / "quality.json"


def run(
    results: Results,
    folder: Path,
    tasks: tuple[str, ...] = TASKS,
    quick: bool = False,
    workers: int = 1,
    say: Callable[[str], object] = print,
) -> str:
    """Measure every missing cell of `tasks` and return the table. A unit that fails is said and left out."""
    size = QUICK if quick else FULL
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = Place(size, folder / size.name, device, workers)
    for phase in phases(size, tasks):
        if workers == 1:
            for unit in phase:
                say(work_off(unit, place, results))
        else:
            _side_by_side(phase, place, results, say)
    return table(results.load()["measurements"])


def _side_by_side(phase: list[Unit], place: Place, results: Results, say: Callable[[str], object]) -> None:
    with ProcessPoolExecutor(place.workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(work_off, unit, place, results): unit for unit in phase}
        for done in as_completed(waiting):
            error, unit = done.exception(), waiting[done]
            say(
                done.result()
                if error is None
                else f"{unit.task} {unit.method} seed {unit.seed} FAILED: {error!r}"
            )


def main() -> None:
    """The command line of a machine that has torch and nothing else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--folder", type=Path, default=Path("quality-work"), help="weights and generated data"
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    tasks = tuple(given.tasks.split(","))
    print(
        run(
            Results(given.results),
            given.folder,
            tasks,
            given.quick,
            given.workers,
            lambda line: print(line, flush=True),
        )
    )


if __name__ == "__main__":
    main()
