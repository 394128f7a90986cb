"""What each gate looks at: scores on shared windows, cost side by side, and the edge bundle's own answers."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.budgets import Calibration
from pipelines.checkpoint import Checkpoint
from pipelines.cost import CostComparison, Subject, compare_cost, payback, quantile_interval, worst_case
from pipelines.data.windows import WindowBatch
from pipelines.edge.bundle import Bundle, build_bundle
from pipelines.edge.measurement import EdgeTimings, measure
from pipelines.edge.rows import Inputs
from pipelines.evaluation import (
    Evaluation,
    cost_kpis,
    evaluate,
    recall_kpi,
    seed_spread_kpi,
)
from pipelines.job import Job, Prepared
from pipelines.scoring import Array, Scores, collect_scores, score_model
from pipelines.signing import load_key
from validation.gates import Stage
from validation.kpis import Kpi, Reference, kpi

if TYPE_CHECKING:
    from pipelines.edge.runtime import EdgeModel

LENGTHS = (1, 4, 16)
"""Multiples of the configured length at which cost is measured; the gate looks at the first."""
_REPEATS = {1: 150, 4: 5, 16: 1}
"""Inferences per process at each multiple: the gated length is measured most closely."""
_PROCESSES_UNGATED = 2
"""Pairs of processes at the lengths that are only shown; the gated one gets as many as the policy asks."""
_PARITY_WINDOWS = 30


def score(
    job: Job, prepared: Prepared, checkpoint: Checkpoint, part: str, density: float | None, subject: str
) -> Scores:
    """A checkpoint's scores of a part; from the store when they were made before."""
    windows = job.windows(prepared)
    inputs = {"prepared": prepared, "checkpoint": checkpoint.sha256, "part": part, "density": density}
    inputs |= {"windows": [job.spec.lookback, job.spec.horizon, job.spec.stride], "subject": subject}
    inputs |= {"split": job.spec.split}

    def compute() -> Scores:
        return score_model(checkpoint, windows, part, density, subject, job.folder / "scores", job.report)

    return job.once(f"score-{subject}-{part}", inputs, Scores, compute)


def score_baselines(job: Job, prepared: Prepared) -> list[Scores]:
    """The simple baseline's scores of every part after the validation part, from one fit."""
    from pipelines.baselines import score_baseline

    windows = job.windows(prepared)
    parts = [part for part in windows.part_names if part not in ("train", "validation")]

    def compute() -> list[Scores]:
        return score_baseline(windows, parts, job.folder / "scores", job.report)

    return job.once("baseline", {"prepared": prepared, "spec": job.spec}, list[Scores], compute)


def measure_costs(
    job: Job, candidate: Checkpoint, dense: Checkpoint, lengths: Sequence[int]
) -> list[CostComparison]:
    """Sparse against dense inference at multiples of the configured length, on this machine."""
    import torch

    density, steps = job.plan.target_density, job.spec.lookback + job.spec.horizon
    enough = job.policy.min_processes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sides = (
        Subject(name="candidate", folder=candidate.folder, density=density),
        Subject(name="dense", folder=dense.folder),
    )

    def compute() -> list[CostComparison]:
        measured = []
        for done, multiple in enumerate(lengths):
            job.report("timing sparse and dense in turns", done, len(lengths))
            measured.append(
                compare_cost(
                    *sides,
                    multiple * steps,
                    repeats=_REPEATS[multiple],
                    processes=enough if multiple == 1 else min(enough, _PROCESSES_UNGATED),
                    threads=job.settings.threads,
                    policy=job.policy,
                    device=device,
                )
            )
        job.report("timing sparse and dense in turns", len(lengths), len(lengths))
        return measured

    inputs = {"candidate": candidate.sha256, "dense": dense.sha256, "density": density, "lengths": lengths}
    inputs |= {"threads": job.settings.threads, "device": device, "steps": steps, "policy": job.policy}
    return job.once("cost", inputs, list[CostComparison], compute)


def judge_stage(
    job: Job,
    prepared: Prepared,
    stage: Stage,
    candidate: Scores,
    references: Mapping[Reference, Scores],
    measured: Sequence[Kpi],
) -> Evaluation:
    """Ask a stage's gate, and keep the whole evaluation in MLflow."""
    inputs = {"stage": stage, "candidate": candidate, "references": references, "measured": measured}
    inputs |= {"policy": job.policy, "spec": job.spec}

    def compute() -> Evaluation:
        job.report(f"judging the {stage} stage", 0, 1)
        evaluation = evaluate(stage, job.spec, job.policy, candidate, references, measured)
        _track(job, evaluation)
        job.report(f"judging the {stage} stage", 1, 1)
        return evaluation

    return job.once(f"judge-{stage}", inputs, Evaluation, compute)


def _track(job: Job, evaluation: Evaluation) -> None:
    verdict = evaluation.verdict
    tags = {"dataset": job.spec.name, "stage": evaluation.stage, "verdict": verdict.outcome}
    name = f"{job.spec.name} {evaluation.stage} gate: {verdict.outcome}"
    with job.tracker.run(name, "evaluation", tags, job.parent_run) as run_id:
        job.tracker.log_dataset(run_id, job.spec.name, verdict.evidence.snapshot, job.spec.file, "evaluation")
        job.tracker.log_metrics(run_id, {_metric_name(each): each.value for each in evaluation.kpis})
        job.tracker.log_dict(run_id, evaluation.model_dump(mode="json"), "evaluation.json")


def _metric_name(measured: Kpi) -> str:
    name = f"{measured.name}_vs_{measured.versus}" if measured.versus else measured.name
    return f"{name}/{measured.slice}" if measured.slice else name


def pilot_kpis(
    job: Job, prepared: Prepared, candidate: Checkpoint, costs: Sequence[CostComparison]
) -> list[Kpi]:
    """Cost at the configured length, payback, and how much attention mass the selection covers."""
    repaid = payback(costs[0], job.policy.cost)
    measured = cost_kpis(costs[0], repaid, candidate.sha256, prepared.snapshot.content_hash)
    windows = job.windows(prepared)
    return [*measured, recall_kpi(candidate, windows, "test", job.plan.target_density)]


def training_kpis(
    job: Job,
    prepared: Prepared,
    candidate: Checkpoint,
    costs: Sequence[CostComparison],
    scores_by_seed: list[Scores],
) -> list[Kpi]:
    """As in the pilot, and whether trainings that differ in their seed agree."""
    return [*pilot_kpis(job, prepared, candidate, costs), seed_spread_kpi(scores_by_seed, job.spec)]


# edge ---------------------------------------------------------------------------------------------


def build_edge(
    job: Job, prepared: Prepared, checkpoint: Checkpoint, calibration: Calibration, verdict: str
) -> Bundle:
    """Export the checkpoint and sign the bundle; compared with the checkpoint on windows of the test part."""
    windows = job.windows(prepared)
    cutoffs = windows.cutoffs("test")
    picked = cutoffs[np.linspace(0, len(cutoffs) - 1, min(_PARITY_WINDOWS, len(cutoffs))).astype(int)]

    def compute() -> Bundle:
        job.report("building the edge bundle", 0, 1)
        inputs = [_inputs(windows.batch(np.array([cutoff])))[0] for cutoff in picked]
        bundle = build_bundle(
            checkpoint,
            job.spec,
            prepared.preprocessing,
            inputs,
            job.plan.target_density,
            verdict,
            load_key(job.settings.keys),
            job.folder / "bundles",
            calibration,
        )
        job.report("building the edge bundle", 1, 1)
        return bundle

    inputs = {"prepared": prepared, "checkpoint": checkpoint.sha256, "verdict": verdict}
    inputs |= {"calibration": calibration, "density": job.plan.target_density, "spec": job.spec}
    return job.once("bundle", inputs, Bundle, compute)


def _inputs(batch: WindowBatch) -> list[Inputs]:
    """What the edge runtime reads, window by window."""
    return [
        Inputs(*(np.ascontiguousarray(array) for array in arrays))
        for arrays in zip(batch.numeric, batch.known, batch.categorical, strict=True)
    ]


def score_on_edge(job: Job, prepared: Prepared, bundle: Bundle, part: str) -> Scores:
    """Scores of a part by the bundle, loaded and answering as on a device."""
    from pipelines.edge.runtime import EdgeModel

    windows = job.windows(prepared)

    def compute() -> Scores:
        key = load_key(job.settings.keys).public_key()
        model = EdgeModel.load(Path(bundle.folder), key, threads=job.settings.threads)

        def answer(batch: WindowBatch) -> Array:
            return np.stack([_answer(model, window, windows.lookback) for window in _inputs(batch)])

        folder, digest = job.folder / "scores", bundle.checkpoint
        return collect_scores(windows, part, answer, "edge", digest, folder, job.report, bundle.density)

    inputs = {"prepared": prepared, "bundle": bundle.manifest_sha256, "part": part, "stride": job.spec.stride}
    return job.once(f"score-edge-{part}", inputs, Scores, compute)


def _answer(model: "EdgeModel", window: Inputs, lookback: int) -> Array:
    """One score per step of the window, zeros before the horizon: the shape a model answers in."""
    scores = model.score(window)
    return np.pad(scores, ((window.num_steps - len(scores), 0), (0, 0))).astype(np.float32)


def measure_edge(job: Job, bundle: Bundle) -> list[EdgeTimings]:
    """Latency and peak memory of the runtime in fresh processes that hold nothing else."""

    def compute() -> list[EdgeTimings]:
        key = load_key(job.settings.keys).public_key()
        job.report("timing the edge runtime", 0, 1)
        rounds = range(job.policy.min_processes)
        timings = [measure(Path(bundle.folder), key, 20, job.settings.threads) for _ in rounds]
        job.report("timing the edge runtime", 1, 1)
        return timings

    inputs = {"bundle": bundle.manifest_sha256, "threads": job.settings.threads}
    return job.once("edge-cost", inputs, list[EdgeTimings], compute)


def edge_kpis(
    prepared: Prepared, bundle: Bundle, timings: Sequence[EdgeTimings], confidence: float
) -> list[Kpi]:
    """Parity with the checkpoint, latency, memory and size, as measured in the runtime that devices use."""
    measured = partial(kpi, checkpoint=bundle.checkpoint, snapshot=prepared.snapshot.content_hash)
    latency = np.concatenate([each.latency_ms for each in timings])
    memory = np.array([each.peak_memory_bytes for each in timings], dtype=np.float64)
    errors = np.array(bundle.parity.window_errors)
    return [
        measured("parity_max_abs_error", worst_case(errors, bundle.parity.max_abs_error)),
        measured("latency_p99_ms", quantile_interval(latency, 0.99, confidence)),
        measured("peak_memory_bytes", worst_case(memory)),
        measured("bundle_bytes", float(bundle.size_bytes)),
    ]
