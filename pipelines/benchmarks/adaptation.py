"""Few-shot adaptation: what a model of other sites is worth at a new one, by the windows the new one has.

`python -m pipelines.benchmarks.adaptation [folder]` prints the curve and writes adaptation.json. Flights of
2013: the source model has seen EWR and JFK from January to May; LGA is the new site. It connects 50, 100, 200
... windows before July and is judged on July to September. A window is 512 departures, asked for the next 64.

Compared at every number of windows, each over several seeds:
  adapt      selector and head of the source model, 120 steps ("adapt" of pipelines.training)
  tune       all weights of the source model, 120 steps
  scratch    a new model with its own scales and vocabularies, 320 steps
  boosting   the simple baseline of the rollout, on the same few windows
  as it is   the source model, unchanged
"""

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.adaptation import latest_windows
from pipelines.baselines import score_baseline
from pipelines.benchmarks.attention import table
from pipelines.benchmarks.trainings import mean_over_trainings, one_by_one, side_by_side
from pipelines.checkpoint import Checkpoint
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import read_snapshot, take_snapshot
from pipelines.data.spec import DatasetSpec, Split, load_spec
from pipelines.data.windows import Windows, training_rows
from pipelines.evaluation import TASK_METRICS, resampling
from pipelines.files import replace_file
from pipelines.fingerprint import ROOT, environment
from pipelines.scoring import load_scored, score_model
from pipelines.training_plan import Mode, TrainingPlan
from validation.policy import load_policy
from validation.statistics import METRICS, Scored, interval, paired_interval

SITE = "LGA"
NUM_WINDOWS = (50, 100, 200, 400)
SEEDS = (0, 1)
Row = dict[str, Any]


def site_spec() -> DatasetSpec:
    """The flights with shorter windows, so that 200 of them are six weeks of one airport, not half a year."""
    spec = load_spec(ROOT / "infra" / "datasets" / "flights.yaml")
    plan = {
        "num_steps": 320,
        "tuning_steps": 120,
        "steps_per_epoch": 40,
        "validation_windows": 64,
        "densities": (0.125, 0.25, 0.5),
        "target_density": 0.25,
    }
    changes = {
        "lookback": 512,
        "horizon": 64,
        "stride": 64,
        "split": Split(validation=datetime(2013, 6, 1), test=datetime(2013, 7, 1), end=datetime(2013, 10, 1)),
        "model": spec.model.model_copy(update={"block_size": 32}),
        "training": spec.training.model_copy(update=plan),
    }
    return spec.model_copy(update=changes)


def source_and_site(spec: DatasetSpec, folder: Path) -> tuple[Windows, Windows]:
    """The other airports' windows, and the new one's in their terms (its own name is unknown there)."""
    import polars as pl

    snapshot = take_snapshot(spec, folder)
    rows = read_snapshot(snapshot)
    others, own = rows.filter(pl.col("origin") != SITE), rows.filter(pl.col("origin") == SITE)
    preprocessing = fit_preprocessing(training_rows(others, spec), spec)
    return Windows(snapshot, spec, preprocessing, others), Windows(snapshot, spec, preprocessing, own)


def in_own_terms(site: Windows) -> Windows:
    """The site's windows with scales and vocabularies of its own: what a training from scratch would have."""
    own = fit_preprocessing(training_rows(site.table, site.spec), site.spec)
    return Windows(site.snapshot, site.spec, own, site.table)


class Benchmark:
    """One source model, one site, and the trainings between them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spec = folder, site_spec()
        self.policy = load_policy(ROOT / "infra" / "rollout.yaml")
        self.source_windows, self.site = source_and_site(self.spec, folder)
        self.source = self.train(self.source_windows, "sparse", 0, self.spec.training)

    def train(
        self, windows: Windows, mode: Mode, seed: int, plan: TrainingPlan, start: Checkpoint | None = None
    ) -> Checkpoint:
        from pipelines.candidates import model_config
        from pipelines.training import train

        folder = self.folder / f"{time.monotonic_ns()}"
        config = model_config(windows, self.spec)
        checkpoint, _ = train(windows, config, plan, mode, seed, folder, _silent, start)
        return checkpoint

    def scores(self, windows: Windows, checkpoints: Sequence[Checkpoint]) -> Scored:
        """Of the test part, the trainings side by side in the last axis."""
        density = self.spec.training.target_density
        each = [
            load_scored(score_model(checkpoint, windows, "test", density, "x", self.folder, _silent))
            for checkpoint in checkpoints
        ]
        return side_by_side(each)

    def row(self, num_windows: int, as_it_is: Scored) -> list[Row]:
        """Every way at one number of windows, and what adapting gains over each of the others."""
        site = latest_windows(self.site, num_windows)
        own, plan = in_own_terms(site), self.spec.training
        tuned = plan.for_tuning()
        made = {
            "adapt": self.scores(site, [self.train(site, "adapt", s, plan, self.source) for s in SEEDS]),
            "tune": self.scores(site, [self.train(site, "sparse", s, tuned, self.source) for s in SEEDS]),
            "scratch": self.scores(own, [self.train(own, "sparse", s, plan) for s in SEEDS]),
            "boosting": load_scored(score_baseline(own, ["test"], self.folder, _silent)[0]),
            "as it is": as_it_is,
        }
        made = {name: side_by_side([each] * len(SEEDS)) if each.scores.shape[-1] == 1 else each
                for name, each in made.items()}  # fmt: skip
        return [self._compare(num_windows, name, each, made["adapt"]) for name, each in made.items()]

    def _compare(self, num_windows: int, name: str, scored: Scored, adapted: Scored) -> Row:
        metric = mean_over_trainings(METRICS[TASK_METRICS[self.spec.task][0]], len(SEEDS))
        how = resampling(self.policy, self.spec, scored.num_windows)
        value = interval(metric, scored, **how)
        row = {"windows": num_windows, "way": name, metric.name: value.model_dump()}
        row["by_seed"] = _by_seed(scored)
        if name != "adapt":
            row["adapt_gains"] = paired_interval(metric, adapted, scored, **how).model_dump()
        return row


def _by_seed(scored: Scored) -> list[float]:
    metric = METRICS["auroc"]
    return [metric(one) for one in one_by_one(scored, len(SEEDS))]


def _silent(*_: object) -> None: ...


def _short(rows: list[Row]) -> list[Row]:
    def text(value: dict[str, float] | None, sign: str = "") -> str:
        if value is None:
            return ""
        return f"{value['value']:{sign}.4f} [{value['low']:{sign}.4f}, {value['high']:{sign}.4f}]"

    return [
        {
            "windows": row["windows"],
            "way": row["way"],
            "auroc [95%]": text(row["auroc"]),
            "adapt gains [95%]": text(row.get("adapt_gains"), "+"),
        }
        for row in rows
    ]


def main(folder: Path | None = None, num_windows: Sequence[int] = NUM_WINDOWS) -> dict[str, Any]:
    """Train everything and print the curve as it grows; adaptation.json in `folder` grows with it."""
    started, rows, result = time.monotonic(), [], {}
    with TemporaryDirectory() as work:
        bench = Benchmark(Path(work))
        as_it_is = bench.scores(bench.site, [bench.source])
        for count in num_windows:
            rows += bench.row(count, as_it_is)
            print(table(_short(rows[-5:])), flush=True)
            result = _result(bench.spec, rows, time.monotonic() - started)
            if folder:
                replace_file(folder / "adaptation.json", json.dumps(result, indent=1).encode() + b"\n")
    return result


def _result(spec: DatasetSpec, rows: list[Row], seconds: float) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "environment": environment().model_dump(),
        "seconds": round(seconds),
        "site": SITE,
        "seeds": SEEDS,
        "lookback": spec.lookback,
        "horizon": spec.horizon,
        "model": spec.model.model_dump(exclude_none=True),
        "training": spec.training.model_dump(mode="json"),
        "rows": rows,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
