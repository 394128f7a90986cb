"""The sensitivity sweep that every training run stores: what each budget of a model is worth and costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.budgets import FILE, BudgetPoint, Calibration, Conditions, Cost
from pipelines.checkpoint import Checkpoint
from pipelines.cost import CostComparison, Subject, Timings, compare_timings, measure_turns, worst_case
from pipelines.data.spec import DatasetSpec
from pipelines.evaluation import TASK_METRICS, resampling
from pipelines.files import replace_file
from pipelines.fingerprint import environment
from pipelines.job import Job, Prepared
from pipelines.judging import score
from pipelines.scoring import load_scored
from sparse_model.config import Budget
from validation.samples import quantile_interval
from validation.statistics import METRICS, Interval, Metric, Scored, paired_interval

_REPEATS = 40  # inferences of each budget: the 90th percentile takes 36 at 95% (the 99th would take 368)
_PROCESSES = 1  # of each budget: memory repeats closely between fresh processes, and each costs seconds
_WINDOWS = (
    48  # of the validation part, on which every budget is scored: enough to choose a budget by, not a gate
)
_RESAMPLES = 200  # a tenth of an interval's width either way does not change which budget is chosen


def calibrate(
    job: Job, prepared: Prepared, checkpoint: Checkpoint, dense: Checkpoint, spec: DatasetSpec | None = None
) -> Calibration:
    """Measure every budget that the model was trained for; kept beside the checkpoint and in MLflow.

    `dense` is the model that losses are counted against. `spec` is the dataset with the split that the
    model was trained on, where it is not the job's own.
    """
    job = replace(job, spec=spec or job.spec)
    inputs = {"checkpoint": checkpoint.sha256, "dense": dense.sha256, "prepared": prepared, "spec": job.spec}
    inputs |= {"policy": job.policy, "threads": job.settings.threads}

    def compute() -> Calibration:
        calibration = _measured(job, prepared, checkpoint, dense)
        _track(job, checkpoint, calibration)
        return calibration

    calibration = job.once("calibration", inputs, Calibration, compute)
    replace_file(Path(checkpoint.folder) / FILE, calibration.model_dump_json(indent=1).encode() + b"\n")
    return calibration


def cost_at_target(job: Job, checkpoint: Checkpoint, dense: Checkpoint) -> CostComparison:
    """What the budget that a model is judged at costs beside dense: the sweep's own timings, none anew."""
    of_dense, *timings = _timings(job, checkpoint, dense)
    ours = timings[_densities(job).index(job.plan.target_density)]
    return compare_timings(ours, of_dense, job.policy)


def _measured(job: Job, prepared: Prepared, checkpoint: Checkpoint, dense: Checkpoint) -> Calibration:
    of_dense, *timings = _timings(job, checkpoint, dense)
    reference = score(job, prepared, dense, "validation", None, "dense", _WINDOWS)
    theirs, metric = load_scored(reference), METRICS[TASK_METRICS[job.spec.task][0]]
    points = []
    for density, timed in zip(_densities(job), timings, strict=True):
        scores = score(job, prepared, checkpoint, "validation", density, "calibration", _WINDOWS)
        ours = load_scored(scores)
        points.append(
            BudgetPoint(
                density=density,
                num_selected=Budget(density).num_selected(-(-timed.num_steps // _block_size(checkpoint))),
                metric=metric.name,
                task_metric=metric(ours),
                loss=_loss(job, metric, ours, theirs),
                cost=_cost(job, timed),
            )
        )
    return Calibration(
        checkpoint=checkpoint.sha256,
        dense=dense.sha256,
        snapshot=prepared.snapshot.content_hash,
        num_windows=reference.num_windows,
        dense_metric=metric(theirs),
        dense_cost=_cost(job, of_dense),
        points=tuple(points),
        conditions=_conditions(job, of_dense),
    )


def _densities(job: Job) -> list[float]:
    """What the model was trained for, and what it is judged at."""
    return sorted({*job.plan.densities, job.plan.target_density})


def _timings(job: Job, checkpoint: Checkpoint, dense: Checkpoint) -> list[Timings]:
    """Dense and every budget in turns, at the configured length; once for all models of one shape.

    Time and memory depend on the shape of the model, not on the values of its weights.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = job.spec.lookback + job.spec.horizon
    subjects = [Subject(name="dense", folder=dense.folder)]
    subjects += [
        Subject(name=f"density {density:g}", folder=checkpoint.folder, density=density)
        for density in _densities(job)
    ]

    def compute() -> list[Timings]:
        tell = job.counting("timing every budget in turns", _PROCESSES)
        return measure_turns(subjects, steps, _REPEATS, _PROCESSES, job.settings.threads, device, tell)

    inputs = {"model": checkpoint.config, "densities": _densities(job), "steps": steps, "device": device}
    inputs |= {"threads": job.settings.threads, "machine": environment().cpu + environment().gpu}
    return job.once("budget-cost", inputs, list[Timings], compute)


def _loss(job: Job, metric: Metric, ours: Scored, theirs: Scored) -> Interval:
    """How much worse than dense, as a share of dense's metric, on the same windows."""
    how = resampling(job.policy, job.spec, ours.num_windows)
    how["num_resamples"] = _RESAMPLES
    gain = paired_interval(metric, ours, theirs, **how)
    scale = abs(metric(theirs)) * (-1 if metric.higher_is_better else 1)
    low, high = sorted((gain.low / scale, gain.high / scale))
    return gain.model_copy(update={"value": gain.value / scale, "low": low, "high": high})


def _cost(job: Job, timed: Timings) -> Cost:
    latency, confidence = np.array(timed.latency_ms), job.policy.confidence
    return Cost(
        latency_p50_ms=quantile_interval(latency, 0.5, confidence=confidence),
        latency_p90_ms=quantile_interval(latency, 0.9, confidence=confidence),
        peak_memory_bytes=worst_case(timed.memory_bytes),
    )


def _conditions(job: Job, timed: Timings) -> Conditions:
    machine = environment()
    return Conditions(
        machine=machine.gpu if timed.device == "cuda" else machine.cpu,
        device=timed.device,
        threads=timed.threads,
        num_steps=timed.num_steps,
        num_timings=len(timed.latency_ms),
        confidence=job.policy.confidence,
    )


def _block_size(checkpoint: Checkpoint) -> int:
    return int(checkpoint.config["block_size"])


def _track(job: Job, checkpoint: Checkpoint, calibration: Calibration) -> None:
    """The table into the training's own run, and its curves over the number of blocks read."""
    job.tracker.log_dict(checkpoint.run_id, calibration.model_dump(mode="json"), FILE)
    curves = [
        (
            point.num_selected,
            {
                f"budget/{point.metric}": point.task_metric,
                "budget/loss": point.loss.value,
                "budget/latency_p50_ms": point.cost.latency_p50_ms.value,
                "budget/peak_memory_bytes": point.cost.peak_memory_bytes.value,
            },
        )
        for point in calibration.points
    ]
    job.tracker.log_series(checkpoint.run_id, curves)
