"""Accuracy on real data: 1/8 of the blocks read, against dense attention, over several seeds.

`python -m pipelines.benchmarks.real_data [folder]` prints a table and writes real_data.json. The datasets are
those of infra/datasets, with models and trainings as they are there. For every seed:

  dense    trained with dense attention, and answering with it
  sparse   trained sparse end to end
  tuned    the dense model, trained on sparsely as in a retraining: a few gentle steps
  pilot    the dense model, frozen, with a selector fitted to it on windows without their targets

Metrics of the test part are means over the seeds. What sparse reading loses is a share of dense attention's
metric, above zero when worse, with a block-bootstrap interval over windows.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.benchmarks.attention import table
from pipelines.benchmarks.trainings import mean_over_trainings, one_by_one, side_by_side
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import read_snapshot, take_snapshot
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.data.windows import Windows, training_rows
from pipelines.evaluation import TASK_METRICS, resampling
from pipelines.files import replace_file
from pipelines.fingerprint import ROOT, environment
from pipelines.scoring import Scores, load_scored, score_model
from validation.policy import load_policy
from validation.statistics import METRICS, Metric, Scored, interval, paired_interval

DATASETS = ("flights", "server_machines", "etth1")
DENSITY = 0.125
SEEDS = (0, 1, 2)
WAYS = ("dense", "sparse", "tuned", "pilot")
Row = dict[str, Any]


def spec_of(dataset: str) -> DatasetSpec:
    """The dataset file; its models are selected at the density that is judged here, and nothing is sliced."""
    spec = load_spec(ROOT / "infra" / "datasets" / f"{dataset}.yaml")
    training = spec.training.model_copy(update={"target_density": DENSITY})
    return spec.model_copy(update={"slices": (), "training": training})


def windows_of(dataset: str, folder: Path) -> Windows:
    """The dataset's windows; its snapshot is taken into `folder` once."""
    spec = spec_of(dataset)
    snapshot = take_snapshot(spec, folder)
    rows = read_snapshot(snapshot)
    return Windows(snapshot, spec, fit_preprocessing(training_rows(rows, spec), spec), rows)


def score_ways(dataset: str, seed: int, folder: Path) -> dict[str, Scores]:
    """Train one seed's models and score the test part with each."""
    from pipelines.candidates import model_config
    from pipelines.training import train

    windows = windows_of(dataset, folder)
    config, plan = model_config(windows, windows.spec), windows.spec.training
    work = folder / f"{dataset}-{seed}"
    dense, _ = train(windows, config, plan, "dense", seed, work / "dense", _silent)
    sparse, _ = train(windows, config, plan, "sparse", seed, work / "sparse", _silent)
    tuned, _ = train(windows, config, plan.for_tuning(), "sparse", seed, work / "tuned", _silent, dense)
    pilot, _ = train(windows, config, plan, "selector", seed, work / "pilot", _silent, dense)
    made = ((dense, None), (sparse, DENSITY), (tuned, DENSITY), (pilot, DENSITY))
    return {
        way: score_model(checkpoint, windows, "test", density, way, work, _silent)
        for way, (checkpoint, density) in zip(WAYS, made, strict=True)
    }


def compare(dataset: str, by_seed: list[dict[str, Scores]]) -> list[Row]:
    """Each way's metric, and what the sparse ones lose against dense attention."""
    spec = spec_of(dataset)
    metric = METRICS[TASK_METRICS[spec.task][0]]
    mean = mean_over_trainings(metric, len(by_seed))
    made = {way: side_by_side([load_scored(scores[way]) for scores in by_seed]) for way in WAYS}
    how = resampling(load_policy(ROOT / "infra" / "rollout.yaml"), spec, made["dense"].num_windows)
    rows: list[Row] = []
    for way, scored in made.items():
        each = [metric(one) for one in one_by_one(scored, len(by_seed))]
        row = {"dataset": dataset, "way": way, "metric": metric.name, "by_seed": each}
        rows.append(row | {"value": interval(mean, scored, **how).model_dump()})
        if way != "dense":
            rows[-1]["loses"] = lost_share(mean, scored, made["dense"], how)
    return rows


def lost_share(metric: Metric, scored: Scored, dense: Scored, how: Any) -> dict[str, float]:
    """Difference from dense attention as a share of its metric, turned so that more is worse."""
    change = paired_interval(metric, scored, dense, **how)
    unit = metric(dense) * (-1 if metric.higher_is_better else 1)
    low, high = sorted((change.low / unit, change.high / unit))
    return {"value": change.value / unit, "low": low, "high": high}


def _silent(*_: object) -> None: ...


def _short(rows: list[Row]) -> list[Row]:
    def shares(lost: dict[str, float] | None) -> str:
        return f"{lost['value']:+.2%} [{lost['low']:+.2%}, {lost['high']:+.2%}]" if lost else ""

    return [
        {
            "dataset": row["dataset"],
            "way": row["way"],
            "metric": row["metric"],
            "value [interval]": "{value:.4f} [{low:.4f}, {high:.4f}]".format(**row["value"]),
            "by seed": " ".join(f"{value:.4f}" for value in row["by_seed"]),
            "loses": shares(row.get("loses")),
        }
        for row in rows
    ]


def main(folder: Path | None = None, workers: int = 1) -> dict[str, Any]:
    """Train `workers` seeds at a time, print the table dataset by dataset, and write real_data.json."""
    result: dict[str, Any] = {"environment": environment().model_dump(), "density": DENSITY, "seeds": SEEDS}
    rows: list[Row] = []
    with (
        TemporaryDirectory() as work,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        jobs = {
            dataset: [pool.submit(score_ways, dataset, seed, Path(work)) for seed in SEEDS]
            for dataset in DATASETS
        }
        for dataset, seeds in jobs.items():
            rows += compare(dataset, [job.result() for job in seeds])
            print(table(_short(rows[-len(WAYS) :])), flush=True)
            result["rows"] = rows
            if folder:
                replace_file(folder / "real_data.json", json.dumps(result, indent=1).encode() + b"\n")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
