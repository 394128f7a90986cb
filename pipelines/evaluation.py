"""From scores and measurements to the KPIs that gates judge. Every subject is scored on the same windows."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile

import numpy as np
from pydantic import Field

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.clock import now
from pipelines.cost import CostComparison
from pipelines.data.spec import DatasetSpec
from pipelines.data.windows import Windows
from pipelines.panel import (
    Panel,
    Resampling,
    gap_kpis,
    gaps_asked,
    group_kpis,
    groups_asked,
    panel_kpis,
)
from pipelines.payback import Payback
from pipelines.scoring import Report, Scores, load_scored
from validation.errors import InputError
from validation.evidence import Evidence, Look
from validation.gates import Stage, StagePolicy, Verdict, judge
from validation.kpis import Kpi, Reference, kpi
from validation.policy import Policy
from validation.record import Record
from validation.statistics import (
    METRICS,
    Interval,
    Scored,
    block_length_for,
    interval,
)

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
    """Everything measured about one candidate at one stage, and the gate's answer.

    `candidate` and `references` say where the scores lie that the task metrics were computed from.
    """

    stage: Stage
    subject: str
    kpis: tuple[Kpi, ...]
    verdict: Verdict
    candidate: Scores | None = None
    references: dict[Reference, Scores] = Field(default_factory=dict)
    overlap: int = 1
    """Consecutive windows that score the same step."""


def evaluate(
    stage: Stage,
    spec: DatasetSpec,
    policy: Policy,
    candidate: Scores,
    references: Mapping[Reference, Scores],
    measured: Iterable[Kpi] = (),
    earlier: Sequence[Look] = (),
    judged_at: str | None = None,
) -> Evaluation:
    """Score the candidate against its references, add what was measured elsewhere, and ask the gate.

    `earlier` are the looks that this stage's gate already had at this candidate, oldest first.
    """
    rules, panel = policy.stage(stage), Panel.of(candidate, references)
    looks = looks_with(earlier, look_at(candidate, references))
    evidence = Evidence(
        checkpoint=candidate.scored,
        snapshot=candidate.snapshot,
        task_metric=TASK_METRICS[spec.task][0],
        references={name: scores.scored for name, scores in references.items()},
        slices=tuple(spec.slices),
        not_comparable=panel.not_comparable,
        looks=looks,
        measured_at=panel.measured_at or None,
        judged_at=judged_at or now(),
    )
    names, confidence = TASK_METRICS[spec.task], rules.confidence_at(evidence.look)
    how = resampling_of(policy, overlap(spec), panel.ours.num_windows, confidence)
    kpis = (*_kpis_of_scores(panel, names, rules, how), *measured)
    return Evaluation(
        stage=stage,
        subject=candidate.subject,
        kpis=kpis,
        verdict=judge(kpis, rules, evidence),
        candidate=candidate,
        references=dict(references),
        overlap=overlap(spec),
    )


def look_at(candidate: Scores, references: Mapping[Reference, Scores]) -> Look:
    """What is looked at: which weights, on which windows, against whom. Scoring it again is no new look."""
    subjects = {"candidate": candidate, **references}
    about = {
        name: [each.scored, each.snapshot, each.part, each.num_windows, each.density]
        for name, each in subjects.items()
    }
    content = json.dumps(about, sort_keys=True).encode()
    return Look(evidence=hashlib.sha256(content).hexdigest(), num_windows=candidate.num_windows)


def looks_with(earlier: Sequence[Look], present: Look) -> tuple[Look, ...]:
    """All looks up to the present one; a look at what was looked at before is that look."""
    before = list(takewhile(lambda look: look.evidence != present.evidence, earlier))
    return (*before, present)


def groups_of(scores: Scores, spec: DatasetSpec, policy: Policy, min_group: int) -> list[Kpi]:
    """The task metric in every group, and the largest gap between those large enough, of one subject."""
    panel, name = Panel.of(scores, {}), TASK_METRICS[spec.task][0]
    how = resampling(policy, spec, panel.ours.num_windows)
    return [
        *group_kpis(panel, name, None, {None: min_group}, how),
        *gap_kpis(panel, name, {None: min_group}, how),
    ]


def task_value(scored: Scored, spec: DatasetSpec, policy: Policy) -> Interval:
    """The task metric of one subject by itself, resampled as the gates do it."""
    how = resampling(policy, spec, scored.num_windows)
    return interval(METRICS[TASK_METRICS[spec.task][0]], scored, **how)


def task_kpis(evaluation: Evaluation, names: Sequence[str], policy: Policy) -> list[Kpi]:
    """The task metrics of a stored evaluation and the gaps between groups, computed again from its scores as
    `policy` wants them.

    Raises InputError where the scores are gone or were altered.
    """
    if evaluation.candidate is None:
        raise InputError(f"{evaluation.subject}: the evaluation does not say where its scores lie")
    rules, look = policy.stage(evaluation.stage), evaluation.verdict.evidence.look
    panel = Panel.of(evaluation.candidate, evaluation.references)
    windows, confidence = panel.ours.num_windows, rules.confidence_at(look)
    how = resampling_of(policy, evaluation.overlap, windows, confidence)
    return _kpis_of_scores(panel, names, rules, how)


def _kpis_of_scores(panel: Panel, names: Sequence[str], rules: StagePolicy, how: Resampling) -> list[Kpi]:
    """Metrics over all windows and in groups, and the gaps between groups, where thresholds ask for them."""
    return [
        *panel_kpis(panel, names, groups_asked(rules.thresholds), how),
        *gap_kpis(panel, names[0], gaps_asked(rules.thresholds), how),
    ]


def overlap(spec: DatasetSpec) -> int:
    """How many consecutive windows score the same step."""
    return math.ceil(max(1, spec.horizon) / spec.stride)


def resampling(policy: Policy, spec: DatasetSpec, num_windows: int) -> Resampling:
    """How metrics over windows of a dataset are resampled, at the policy's confidence."""
    return resampling_of(policy, overlap(spec), num_windows, policy.confidence)


def resampling_of(policy: Policy, overlap: int, num_windows: int, confidence: float) -> Resampling:
    """Blocks long enough for windows that share steps of their horizons, and as many resamples beyond either
    end of the interval as the policy's own confidence would leave there."""
    return {
        "confidence": confidence,
        "num_resamples": math.ceil(policy.num_resamples * (1 - policy.confidence) / (1 - confidence) - 1e-9),
        "block_length": block_length_for(num_windows, overlap),
        "seed": 0,
        "overlap": overlap,
    }


def cost_kpis(cost: CostComparison, repaid: Payback, checkpoint: str, snapshot: str) -> list[Kpi]:
    """Latency and memory ratios at the configured length, and the payback."""
    measured = partial(kpi, checkpoint=checkpoint, snapshot=snapshot, measured_at=cost.measured_at)
    days = Interval(value=repaid.days, low=repaid.low, high=repaid.high, n=1, confidence=repaid.confidence)
    return [
        measured("latency_p50_ratio", cost.latency_p50_ratio),
        measured("latency_p99_ratio", cost.latency_p99_ratio),
        measured("peak_memory_ratio", cost.peak_memory_ratio),
        measured("payback_days", days),
    ]


def recall_kpi(
    checkpoint: Checkpoint,
    windows: Windows,
    part: str,
    density: float,
    confidence: float = 0.95,
    report: Report = lambda what, done, total: None,
) -> Kpi:
    """Share of dense attention's mass on the blocks read, over some evaluation windows of `part`."""
    import torch

    from pipelines.training_batches import to_tensors
    from sparse_model.config import Budget
    from sparse_model.explanation import selection_recall

    model = load_model(checkpoint)
    picked = windows.some_cutoffs(part, _AUDITED_WINDOWS)
    probes = torch.linspace(0, windows.lookback + windows.horizon - 1, _PROBES).long()
    shares = []
    for done, cutoff in enumerate(picked):
        report("measuring selection recall", done, len(picked))
        numeric, known, categorical, *_ = to_tensors(windows.batch(np.array([cutoff]), None))
        share = selection_recall(model, numeric, known, categorical, Budget(density), probes)
        shares.append(float(share.mean()))
    report("measuring selection recall", len(picked), len(picked))
    share = _mean_interval(np.array(shares), confidence)
    snapshot = windows.snapshot.content_hash
    measured = partial(kpi, checkpoint=checkpoint.sha256, snapshot=snapshot, measured_at=now())
    return measured("selection_recall", share)


def _mean_interval(values: np.ndarray, confidence: float) -> Interval:
    """Mean of shares with Student's interval."""
    from scipy.special import stdtrit

    mean, num = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) / math.sqrt(num) if num > 1 else math.nan
    half = float(stdtrit(num - 1, (1 + confidence) / 2)) * spread if num > 1 else math.nan
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Interval(value=mean, low=low, high=high, n=num, confidence=confidence)


def seed_spread_kpi(scores: list[Scores], spec: DatasetSpec) -> Kpi:
    """(largest - smallest) / |mean| of the task metric over trainings that differ in their seed alone."""
    metric = METRICS[TASK_METRICS[spec.task][0]]
    values = [metric(load_scored(each)) for each in scores]
    spread = (max(values) - min(values)) / abs(sum(values) / len(values)) if len(values) > 1 else math.nan
    measured = partial(kpi, checkpoint=scores[0].scored, snapshot=scores[0].snapshot)
    return measured("seed_spread", spread, measured_at=min(each.scored_at for each in scores))
