"""From scores and measurements to the KPIs that gates judge. Every subject is scored on the same windows."""

import math
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import TypedDict

import numpy as np

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.cost import CostComparison, Payback
from pipelines.data.spec import DatasetSpec
from pipelines.data.windows import Windows
from pipelines.scoring import Scores, load_scored, load_slices
from pipelines.training import to_tensors
from validation.gates import Evidence, Stage, Verdict, judge
from validation.kpis import Kpi, Reference, kpi
from validation.policy import Policy
from validation.record import Record
from validation.statistics import METRICS, Interval, Scored, block_length_for, interval, paired_interval

TASK_METRICS: dict[str, tuple[str, ...]] = {
    "event": ("auroc", "average_precision", "log_loss"),
    "forecast": ("mse", "mae"),
    "detect": ("auroc", "average_precision"),
}
"""The metrics of each task; the first is the one that gates call task_metric. AUROC stands before
average precision because a 2% margin can be decided with it on two months of windows, with the other not."""
_AUDITED_WINDOWS = 32
_PROBES = 64


class Evaluation(Record):
    """Everything measured about one candidate at one stage, and the gate's answer."""

    stage: Stage
    subject: str
    kpis: tuple[Kpi, ...]
    verdict: Verdict


def evaluate(
    stage: Stage,
    spec: DatasetSpec,
    policy: Policy,
    candidate: Scores,
    references: Mapping[Reference, Scores],
    measured: Iterable[Kpi] = (),
) -> Evaluation:
    """Score the candidate against its references, add what was measured elsewhere, and ask the gate."""
    asked: set[Reference | None] = {each.versus for each in policy.stage(stage).thresholds if each.slice}
    kpis = (*task_kpis(candidate, references, spec, policy, asked), *measured)
    evidence = Evidence(
        checkpoint=candidate.scored,
        snapshot=candidate.snapshot,
        task_metric=TASK_METRICS[spec.task][0],
        references={name: scores.scored for name, scores in references.items()},
        slices=tuple(spec.slices),
    )
    verdict = judge(kpis, policy.stage(stage), evidence)
    return Evaluation(stage=stage, subject=candidate.subject, kpis=kpis, verdict=verdict)


def task_kpis(
    candidate: Scores,
    references: Mapping[Reference, Scores],
    spec: DatasetSpec,
    policy: Policy,
    by_slice: Collection[Reference | None],
) -> list[Kpi]:
    """Task metrics of the candidate, alone and paired with each reference; in slices the main metric alone,
    paired with the references in `by_slice`."""
    ours = load_scored(candidate)
    theirs: dict[Reference, Scored] = {name: load_scored(scores) for name, scores in references.items()}
    groups = {"": None, **_groups(candidate)}
    kpis = []
    for label, keep in groups.items():
        names = TASK_METRICS[spec.task] if not label else TASK_METRICS[spec.task][:1]
        subject = ours if keep is None else ours.restrict(keep)
        others: dict[Reference, Scored] = {
            name: ref if keep is None else ref.restrict(keep)
            for name, ref in theirs.items()
            if keep is None or name in by_slice
        }
        for name in names:
            kpis += _metric_kpis(name, label, subject, others, candidate, references, spec, policy)
    return kpis


def _groups(scores: Scores) -> dict[str, np.ndarray]:
    """Mask [W, S, 1] of every group of every slice column: "origin=JFK" and so on."""
    return {
        f"{column}={group}": (values == group)[..., None]
        for column, values in load_slices(scores).items()
        for group in np.unique(values)
    }


def _metric_kpis(
    name: str,
    label: str,
    subject: Scored,
    others: Mapping[Reference, Scored],
    candidate: Scores,
    references: Mapping[Reference, Scores],
    spec: DatasetSpec,
    policy: Policy,
) -> list[Kpi]:
    metric, how = METRICS[name], resampling(policy, spec, subject.num_windows)
    measured = partial(kpi, name, checkpoint=candidate.scored, snapshot=candidate.snapshot, slice=label)
    kpis = [measured(interval(metric, subject, **how))]
    for versus, reference in others.items():
        difference = paired_interval(metric, subject, reference, **how)
        kpis.append(
            measured(
                difference,
                versus=versus,
                reference_value=metric(reference),
                reference_checkpoint=references[versus].scored,
            )
        )
    return kpis


class Resampling(TypedDict):
    """How a bootstrap over windows is done."""

    confidence: float
    num_resamples: int
    block_length: int
    seed: int


def resampling(policy: Policy, spec: DatasetSpec, num_windows: int) -> Resampling:
    """Blocks long enough for windows that share steps of their horizons."""
    overlap = math.ceil(max(1, spec.horizon) / spec.stride)
    return {
        "confidence": policy.confidence,
        "num_resamples": policy.num_resamples,
        "block_length": block_length_for(num_windows, overlap),
        "seed": 0,
    }


def cost_kpis(cost: CostComparison, repaid: Payback, checkpoint: str, snapshot: str) -> list[Kpi]:
    """Latency and memory ratios at the configured length, and the payback."""
    measured = partial(kpi, checkpoint=checkpoint, snapshot=snapshot)
    days = Interval(value=repaid.days, low=repaid.low, high=repaid.high, n=1)
    return [
        measured("latency_p50_ratio", cost.latency_p50_ratio),
        measured("latency_p99_ratio", cost.latency_p99_ratio),
        measured("peak_memory_ratio", cost.peak_memory_ratio),
        measured("payback_days", days),
    ]


def recall_kpi(checkpoint: Checkpoint, windows: Windows, part: str, density: float) -> Kpi:
    """Share of dense attention's mass on the blocks read, over some evaluation windows of `part`."""
    import torch

    from sparse_model.config import Budget
    from sparse_model.explanation import selection_recall

    model = load_model(checkpoint)
    cutoffs = windows.cutoffs(part)
    picked = cutoffs[np.linspace(0, len(cutoffs) - 1, min(_AUDITED_WINDOWS, len(cutoffs))).astype(int)]
    probes = torch.linspace(0, windows.lookback + windows.horizon - 1, _PROBES).long()
    shares = []
    for cutoff in picked:
        numeric, known, categorical, *_ = to_tensors(windows.batch(np.array([cutoff]), None))
        share = selection_recall(model, numeric, known, categorical, Budget(density), probes)
        shares.append(float(share.mean()))
    share = _mean_interval(np.array(shares))
    snapshot = windows.snapshot.content_hash
    return kpi("selection_recall", share, checkpoint=checkpoint.sha256, snapshot=snapshot)


def _mean_interval(values: np.ndarray) -> Interval:
    """Mean with a 95% normal interval."""
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Interval(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=len(values))


def seed_spread_kpi(scores: list[Scores], spec: DatasetSpec) -> Kpi:
    """(largest - smallest) / |mean| of the task metric over trainings that differ in their seed alone."""
    metric = METRICS[TASK_METRICS[spec.task][0]]
    values = [metric(load_scored(each)) for each in scores]
    spread = (max(values) - min(values)) / abs(sum(values) / len(values)) if len(values) > 1 else math.nan
    return kpi("seed_spread", spread, checkpoint=scores[0].scored, snapshot=scores[0].snapshot)
