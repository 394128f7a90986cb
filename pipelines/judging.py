"""What each gate looks at: scores on shared windows, cost side by side, and the edge bundle's own answers."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.budgets import Calibration
from pipelines.checkpoint import Checkpoint
from pipelines.clock import now
from pipelines.cost import CostComparison, Subject, compare_cost, worst_case
from pipelines.data.windows import WindowBatch
from pipelines.edge.bundle import Bundle, build_bundle
from pipelines.edge.measurement import EdgeTimings, measure
from pipelines.edge.parity import inputs_of, parity_inputs
from pipelines.edge.rows import Inputs
from pipelines.evaluation import (
    Evaluation,
    cost_kpis,
    evaluate,
    recall_kpi,
    seed_spread_kpi,
)
from pipelines.evaluations import earlier_looks, track
from pipelines.fingerprint import machine
from pipelines.job import Job, Prepared
from pipelines.payback import tracked_payback
from pipelines.rollout import current_state, opponent
from pipelines.scoring import Array, Scores, collect_scores, score_model
from pipelines.serving.comparison import canary_kpis
from pipelines.serving_check import serving_kpis
from pipelines.signing import load_key
from pipelines.tracking import baseline_run
from pipelines.values import Values, task_values
from validation.errors import InputError
from validation.gates import Stage, staleness
from validation.kpis import Kpi, Reference, kpi
from validation.policy import Policy
from validation.samples import quantile_interval
from validation.statistics import Interval

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from pipelines.edge.runtime import EdgeModel

LENGTHS = (1, 4, 16)
"""Multiples of the configured length at which cost is measured; the gate looks at the first."""
_REPEATS_UNGATED = {4: 5, 16: 1}
"""Inferences at the lengths that are only shown, in one pair of processes; at the gated length there are as
many of both as the policy asks."""
_EDGE_TIMINGS = 420
"""Inferences in all processes of the edge runtime together: they are cheap, and the gated 99th percentile
takes 368 at 95%."""


def score(
    job: Job,
    prepared: Prepared,
    checkpoint: Checkpoint,
    part: str,
    density: float | None,
    subject: str,
    max_windows: int | None = None,
) -> Scores:
    """A checkpoint's scores of a part, or of at most `max_windows` evenly spread over it; from the store when
    they were made before."""
    windows = job.windows(prepared)
    inputs = {"prepared": prepared, "checkpoint": checkpoint.sha256, "part": part, "density": density}
    inputs |= {"windows": [job.spec.lookback, job.spec.horizon, job.spec.stride], "subject": subject}
    inputs |= {"split": job.spec.split, "max_windows": max_windows}
    folder = job.folder / "scores"

    def compute() -> Scores:
        if job.spread is None or max_windows is not None:
            return score_model(checkpoint, windows, part, density, subject, folder, job.report, max_windows)
        from pipelines.fan_out import score_in_pieces

        with job.reporting(f"scoring {part} with {subject} on several processes"):
            return score_in_pieces(job.spread, checkpoint, windows, part, density, subject, folder)

    return job.once(f"score-{subject}-{part}", inputs, Scores, compute, lambda stored: is_fresh(job, stored))


def score_champion(job: Job, prepared: Prepared, champion: Checkpoint, part: str) -> Scores:
    """What is live, scored again on the windows of a part; it reads as much as it does in service."""
    density = None if champion.mode == "dense" else job.plan.target_density
    return score(job, prepared, champion, part, density, "champion")


def is_fresh(job: Job, scores: Scores) -> bool:
    """Whether scores may still be judged; older ones are made again."""
    return job.is_recent(scores.scored_at)


def score_baselines(job: Job, prepared: Prepared) -> list[Scores]:
    """The simple baseline's scores of every part after the validation part, from one fit."""
    from pipelines.baselines import score_baseline

    windows = job.windows(prepared)
    parts = [part for part in windows.part_names if part not in ("train", "validation")]

    def compute() -> list[Scores]:
        with baseline_run(job, prepared) as note:
            scores = score_baseline(windows, parts, job.folder / "scores", job.report)
            note(scores)
        return scores

    inputs = {"prepared": prepared, "spec": job.spec}
    return job.once(
        "baseline", inputs, list[Scores], compute, lambda stored: all(is_fresh(job, each) for each in stored)
    )


def measure_costs(
    job: Job, candidate: Checkpoint, dense: Checkpoint, lengths: Sequence[int]
) -> list[CostComparison]:
    """Sparse against dense inference at multiples of the configured length, on this machine."""
    import torch

    density, steps = job.plan.target_density, job.spec.lookback + job.spec.horizon
    processes = job.policy.min_processes
    repeats = math.ceil(job.policy.stage("pilot").needed("latency_p99_ratio") / processes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sides = (
        Subject(name="candidate", folder=candidate.folder, density=density),
        Subject(name="dense", folder=dense.folder),
    )

    def compute() -> list[CostComparison]:
        tell = job.counting("timing sparse and dense in turns", processes + len(lengths) - 1)
        return [
            compare_cost(
                *sides,
                multiple * steps,
                repeats=_REPEATS_UNGATED.get(multiple, repeats),
                processes=1 if multiple in _REPEATS_UNGATED else processes,
                threads=job.settings.threads,
                policy=job.policy,
                device=device,
                after_round=tell,
            )
            for multiple in lengths
        ]

    inputs = {"candidate": candidate.sha256, "dense": dense.sha256, "density": density, "lengths": lengths}
    inputs |= {"threads": job.settings.threads, "device": device, "steps": steps, "machine": machine()}
    # Of the policy only what timings and their intervals depend on: a new price is no reason to time again.
    inputs |= {"processes": processes, "confidence": job.policy.confidence}
    inputs |= {"resamples": job.policy.num_resamples}
    return job.once("cost", inputs, list[CostComparison], compute, lambda stored: _are_recent(job, stored))


def _are_recent(job: Job, measured: Sequence[CostComparison] | Sequence[EdgeTimings]) -> bool:
    return all(job.is_recent(each.measured_at) for each in measured)


def judge_stage(
    job: Job,
    prepared: Prepared,
    stage: Stage,
    candidate: Scores,
    references: Mapping[Reference, Scores],
    measured: Sequence[Kpi],
    *,
    is_confirmation: bool = False,
) -> Evaluation:
    """Ask a stage's gate, and keep the whole evaluation in MLflow.

    Asked again about the same weights on other evidence, it takes the next look and needs more certainty. A
    confirmation of a PASS, where both verdicts have to pass, can only make passing harder and so is no look.
    """
    inputs = {"stage": stage, "candidate": candidate, "references": references, "measured": measured}
    inputs |= {"policy": job.policy, "spec": job.spec, "is_confirmation": is_confirmation}

    def compute() -> Evaluation:
        job.report(f"judging the {stage} stage", 0, 1)
        earlier = [] if is_confirmation else earlier_looks(job, stage, candidate)
        evaluation = evaluate(stage, job.spec, job.policy, candidate, references, measured, earlier)
        track(job, evaluation, is_confirmation)
        job.report(f"judging the {stage} stage", 1, 1)
        return evaluation

    return job.once(f"judge-{stage}", inputs, Evaluation, compute, lambda stored: _is_fresh(job, stored))


def _is_fresh(job: Job, stored: Evaluation) -> bool:
    return not staleness(stored.verdict.evidence, job.policy.max_age_hours, now())


def values_side_by_side(job: Job, subjects: Mapping[str, Scores]) -> list[Values]:
    """Every subject's task metrics by themselves, by the role it plays."""

    def compute() -> list[Values]:
        with job.reporting("measuring how good each is by itself"):
            return [task_values(role, each, job.spec, job.policy) for role, each in subjects.items()]

    inputs = {"subjects": subjects, "spec": job.spec, "policy": job.policy}
    return job.once("how-good", inputs, list[Values], compute)


def pilot_kpis(
    job: Job,
    prepared: Prepared,
    candidate: Checkpoint,
    costs: Sequence[CostComparison],
    part: str = "test",
) -> list[Kpi]:
    """Cost, payback, attention mass that the selection covers, serving check, and what real requests said.

    What takes windows is measured on those of `part`, on which the candidate is judged.
    """
    repaid = tracked_payback(job, costs[0], candidate.sha256)
    weights, data = candidate.sha256, prepared.snapshot.content_hash
    measured = cost_kpis(costs[0], repaid, weights, data)
    confidence = _confidence_of_last_look(job.policy)
    recall = _measure_recall(job, prepared, candidate, part, confidence)
    requests = canary_kpis(
        job.settings,
        job.spec.name,
        candidate=weights,
        incumbent=opponent(current_state(job.log, job.spec.name), weights),
        snapshot=data,
        confidence=confidence,
        min_requests=job.policy.canary.min_requests,
    )
    return [*measured, recall, *serving_kpis(job, prepared, candidate, part), *requests]


def _measure_recall(job: Job, prepared: Prepared, candidate: Checkpoint, part: str, confidence: float) -> Kpi:
    windows, density = job.windows(prepared), job.plan.target_density
    inputs = {"prepared": prepared, "checkpoint": candidate.sha256, "part": part, "density": density}
    inputs |= {"windows": [job.spec.lookback, job.spec.horizon, job.spec.stride], "split": job.spec.split}
    return job.once(
        "recall",
        inputs | {"confidence": confidence},
        Kpi,
        lambda: recall_kpi(candidate, windows, part, density, confidence, job.report),
        lambda stored: job.is_recent(stored.measured_at),
    )


def steady_kpis(job: Job, prepared: Prepared, challenger: Checkpoint, part: str) -> list[Kpi]:
    """Beside a challenger's scores: whether it loads and answers as it will be served."""
    return serving_kpis(job, prepared, challenger, part)


def _confidence_of_last_look(policy: Policy) -> float:
    """Enough for any time of asking: what is measured before the gate does not know which it will be."""
    return 1 - (1 - policy.confidence) * min(policy.looks)


def training_kpis(
    job: Job,
    prepared: Prepared,
    candidate: Checkpoint,
    costs: Sequence[CostComparison],
    scores_by_seed: list[Scores],
    part: str = "test",
) -> list[Kpi]:
    """As in the pilot, and whether trainings that differ in their seed agree."""
    return [*pilot_kpis(job, prepared, candidate, costs, part), seed_spread_kpi(scores_by_seed, job.spec)]


# edge ---------------------------------------------------------------------------------------------


def build_edge(
    job: Job, prepared: Prepared, checkpoint: Checkpoint, calibration: Calibration, verdict: str
) -> Bundle:
    """Export the checkpoint and sign the bundle; compared with the checkpoint on windows of the test part."""

    def compute() -> Bundle:
        job.report("building the edge bundle", 0, 1)
        bundle = build_bundle(
            checkpoint,
            job.spec,
            prepared.preprocessing,
            parity_inputs(job.windows(prepared)),
            job.plan.target_density,
            verdict,
            load_key(job.settings.keys),
            job.folder / "bundles",
            calibration,
            job.spec.edge_precision,
        )
        job.report("building the edge bundle", 1, 1)
        return bundle

    inputs = {"prepared": prepared, "checkpoint": checkpoint.sha256, "verdict": verdict}
    inputs |= {"calibration": calibration, "density": job.plan.target_density, "spec": job.spec}
    return job.once("bundle", inputs, Bundle, compute)


def score_on_edge(job: Job, prepared: Prepared, bundle: Bundle, part: str) -> Scores:
    """Scores of a part by the bundle, loaded and answering as on a device."""
    from pipelines.edge.runtime import EdgeModel

    windows = job.windows(prepared)

    def compute() -> Scores:
        key = load_key(job.settings.keys).public_key()
        model = EdgeModel.load(Path(bundle.folder), key, threads=job.settings.threads)

        def answer(batch: WindowBatch) -> Array:
            return np.stack([window_scores(model, window, windows.lookback) for window in inputs_of(batch)])

        folder, digest = job.folder / "scores", bundle.checkpoint
        return collect_scores(windows, part, answer, "edge", digest, folder, job.report, bundle.density)

    inputs = {"prepared": prepared, "bundle": bundle.manifest_sha256, "part": part, "stride": job.spec.stride}
    return job.once(f"score-edge-{part}", inputs, Scores, compute, lambda stored: is_fresh(job, stored))


def window_scores(model: "EdgeModel", window: Inputs, lookback: int) -> Array:
    """One score per step of the window, zeros before the horizon: the shape a model answers in."""
    scores = model.score(window)
    return np.pad(scores, ((window.num_steps - len(scores), 0), (0, 0))).astype(np.float32)


def measure_edge(job: Job, bundle: Bundle) -> list[EdgeTimings]:
    """Latency and peak memory of the runtime in fresh processes that hold nothing else."""
    needed = max(_EDGE_TIMINGS, job.policy.stage("edge").needed("latency_p99_ms"))
    repeats = math.ceil(needed / job.policy.min_processes)

    def compute() -> list[EdgeTimings]:
        key = load_key(job.settings.keys).public_key()
        timings, tell = [], job.counting("timing the edge runtime", job.policy.min_processes)
        for _ in range(job.policy.min_processes):
            timings.append(_measure_once(job, bundle, key, repeats))
            tell()
        return timings

    def stands(timings: list[EdgeTimings]) -> bool:
        return _are_recent(job, timings) and not any(each.failure for each in timings)

    inputs = {"bundle": bundle.manifest_sha256, "threads": job.settings.threads, "machine": machine()}
    inputs |= {"processes": job.policy.min_processes, "repeats": repeats}
    return job.once("edge-cost", inputs, list[EdgeTimings], compute, stands)


def _measure_once(job: Job, bundle: Bundle, key: "Ed25519PublicKey", repeats: int) -> EdgeTimings:
    """A runtime that does not load or answer is a finding, which the gate judges."""
    try:
        return measure(Path(bundle.folder), key, repeats, job.settings.threads)
    except InputError as error:
        return EdgeTimings.failed(job.settings.threads, str(error))


def edge_kpis(
    prepared: Prepared, bundle: Bundle, timings: Sequence[EdgeTimings], confidence: float
) -> list[Kpi]:
    """Errors, parity with the checkpoint, latency, memory and size, as measured in the devices' runtime.

    All are as old as the timings: each process first verified the bundle's bytes and golden answers again.
    """
    about = {"checkpoint": bundle.checkpoint, "snapshot": prepared.snapshot.content_hash}
    measured = partial(kpi, measured_at=min((each.measured_at for each in timings), default=None), **about)
    latency = np.array([value for each in timings for value in each.latency_ms])
    memory = np.array([each.peak_memory_bytes for each in timings if not each.failure], dtype=np.float64)
    errors = np.array(bundle.parity.window_errors)
    # A process answers every time or not at all, and one that does not would have been asked as often.
    asked = len(timings) * max((len(each.latency_ms) for each in timings), default=0) or _EDGE_TIMINGS
    failed = 1 - len(latency) / asked
    kpis = [
        measured("error_rate", Interval(value=failed, low=failed, high=failed, n=asked)),
        measured("parity_max_abs_error", worst_case(errors, bundle.parity.max_abs_error)),
        measured("parity_share", bundle.parity.share),
        measured("bundle_bytes", float(bundle.size_bytes)),
    ]
    if len(latency):
        kpis.append(measured("latency_p99_ms", quantile_interval(latency, 0.99, confidence=confidence)))
        kpis.append(measured("peak_memory_bytes", worst_case(memory)))
    return kpis
