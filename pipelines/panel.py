"""A candidate's scores beside those of its references, and the KPIs that follow from them.

Shapes: W windows, S scored steps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import numpy as np

from pipelines.scoring import Scores, load_scored, load_slices
from validation.gaps import largest_gap
from validation.kpis import Kpi, Reference, kpi
from validation.simultaneous import intervals_at_once
from validation.statistics import (
    METRICS,
    Interval,
    Metric,
    Scored,
    Weights,
    interval,
    num_telling_windows,
    paired_interval,
    resample_weights,
    same_windows,
)
from validation.thresholds import Threshold

GAP = "largest_gap"


class Resampling(TypedDict):
    """How a bootstrap over windows is done."""

    confidence: float
    num_resamples: int
    block_length: int
    seed: int
    overlap: int


@dataclass(frozen=True)
class Panel:
    """The candidate's scores, and beside them those references that were scored on the same windows."""

    candidate: Scores
    ours: Scored
    references: Mapping[Reference, Scores]
    theirs: Mapping[Reference, Scored]
    not_comparable: dict[Reference, str]
    groups: Mapping[str, np.ndarray]
    """Mask [W, S, 1] of every group of every slice column: "origin=JFK" and so on."""

    @property
    def measured_at(self) -> str:
        """When the oldest of the scores were made; "" where one of them does not say."""
        return min(each.scored_at for each in (self.candidate, *self.references.values()))

    @classmethod
    def of(cls, candidate: Scores, references: Mapping[Reference, Scores]) -> "Panel":
        ours = load_scored(candidate)
        theirs: dict[Reference, Scored] = {name: load_scored(scores) for name, scores in references.items()}
        refused: dict[Reference, str] = {
            name: reason
            for name, scores in references.items()
            if (reason := _other_windows(name, candidate, ours, scores, theirs[name]))
        }
        paired: dict[Reference, Scored] = {name: theirs[name] for name in theirs if name not in refused}
        return cls(candidate, ours, references, paired, refused, _groups(candidate))


def _other_windows(name: str, candidate: Scores, ours: Scored, reference: Scores, theirs: Scored) -> str:
    """Why a paired difference would mean nothing, or ""."""
    if reference.snapshot != candidate.snapshot:
        return f"{name} was scored on snapshot {reference.snapshot[:12]}, not on {candidate.snapshot[:12]}"
    if reference.part != candidate.part or not same_windows(ours, theirs):
        return f"{name} was not scored on the same windows: score it again on part {candidate.part}"
    return ""


def groups_asked(thresholds: Iterable[Threshold]) -> dict[Reference | None, int]:
    """Against whom groups are compared, and the smallest group that counts there."""
    asked: dict[Reference | None, int] = {}
    for threshold in thresholds:
        if threshold.slice:
            asked[threshold.versus] = min(threshold.min_group, asked.get(threshold.versus, 1 << 62))
    return asked


def gaps_asked(thresholds: Iterable[Threshold]) -> dict[Reference | None, int]:
    """Against whom the gap between groups is compared, and the smallest group that counts."""
    return groups_asked(each for each in thresholds if each.kpi == GAP)


def panel_kpis(
    panel: Panel, names: Sequence[str], sliced: Mapping[Reference | None, int], how: "Resampling"
) -> list[Kpi]:
    """Task metrics over all windows, alone and paired with each reference; in groups the main metric."""
    whole = [each for name in names for each in _whole_kpis(panel, name, how)]
    groups = [
        each for versus in (None, *panel.theirs) for each in group_kpis(panel, names[0], versus, sliced, how)
    ]
    return whole + groups


def _whole_kpis(panel: Panel, name: str, how: "Resampling") -> list[Kpi]:
    metric = METRICS[name]
    measured = partial(
        kpi,
        name,
        checkpoint=panel.candidate.scored,
        snapshot=panel.candidate.snapshot,
        measured_at=panel.measured_at,
    )
    alone = measured(interval(metric, panel.ours, **how))
    return [alone] + [
        measured(
            paired_interval(metric, panel.ours, reference, **how),
            versus=versus,
            reference_value=metric(reference),
            reference_checkpoint=panel.references[versus].scored,
        )
        for versus, reference in panel.theirs.items()
    ]


def group_kpis(
    panel: Panel,
    name: str,
    versus: Reference | None,
    sliced: Mapping[Reference | None, int],
    how: "Resampling",
) -> list[Kpi]:
    """The groups of every slice column, with one band over those that count.

    The candidate's own metric is measured in every group, the difference from a reference only where groups
    are asked about.
    """
    if versus is not None and versus not in sliced:
        return []
    smallest = sliced.get(versus, math.inf)
    groups = panel.groups
    telling = {
        label: num_telling_windows(METRICS[name], panel.ours.restrict(keep)) for label, keep in groups.items()
    }
    counted = [label for label in groups if telling[label] >= smallest]
    kpis = []
    for family in (counted, *([label] for label in groups if label not in counted)):
        kpis += _family_kpis(panel, name, versus, family, how, is_judged=family is counted)
    return kpis


def _family_kpis(
    panel: Panel,
    name: str,
    versus: Reference | None,
    labels: Sequence[str],
    how: "Resampling",
    is_judged: bool,
) -> list[Kpi]:
    masks, metric = panel.groups, METRICS[name]
    ours = [panel.ours.restrict(masks[label]) for label in labels]
    theirs = [panel.theirs[versus].restrict(masks[label]) if versus else None for label in labels]
    pairs = list(zip(ours, theirs, strict=True))
    found = groups_at_once(metric, pairs, how)
    return [
        kpi(
            name,
            own.model_copy(update={"n": num_telling_windows(metric, subject)}),
            joint=joint if is_judged else None,
            checkpoint=panel.candidate.scored,
            snapshot=panel.candidate.snapshot,
            slice=label,
            versus=versus,
            reference_value=metric(reference) if reference is not None else None,
            reference_checkpoint=panel.references[versus].scored if versus else None,
            measured_at=panel.measured_at,
        )
        for label, subject, reference, (own, joint) in zip(labels, ours, theirs, found, strict=True)
    ]


def groups_at_once(
    metric: Metric, groups: Sequence[tuple[Scored, Scored | None]], how: Resampling
) -> list[tuple[Interval, Interval]]:
    """For each group (subject, reference) its own interval, and its part of the band over all of them."""
    if not groups:
        return []
    return intervals_at_once(
        metric,
        groups,
        _weights(groups[0][0], how),
        confidence=how["confidence"],
        block_length=how["block_length"],
        overlap=how["overlap"],
    )


def _weights(scored: Scored, how: Resampling) -> Weights:
    return resample_weights(scored.num_windows, how["block_length"], how["num_resamples"], how["seed"])


def _groups(scores: Scores) -> dict[str, np.ndarray]:
    return {
        f"{column}={group}": (values == group)[..., None]
        for column, values in load_slices(scores).items()
        for group in np.unique(values)
    }


def gap_kpis(panel: Panel, name: str, asked: Mapping[Reference | None, int], how: "Resampling") -> list[Kpi]:
    """The largest gap of each slice column: of the candidate, or beside that of a reference."""
    possible: dict[Reference | None, int] = {
        versus: least for versus, least in asked.items() if versus is None or versus in panel.theirs
    }
    columns = dict.fromkeys(label.split("=")[0] for label in panel.groups)
    found = [
        _gap_kpi(panel, name, column, versus, least, how)
        for versus, least in possible.items()
        for column in columns
    ]
    return [each for each in found if each is not None]


def _gap_kpi(
    panel: Panel, name: str, column: str, versus: Reference | None, least: int, how: "Resampling"
) -> Kpi | None:
    metric = METRICS[name]
    own = {label: keep for label, keep in panel.groups.items() if label.startswith(f"{column}=")}
    ours = {label.removeprefix(f"{column}="): panel.ours.restrict(keep) for label, keep in own.items()}
    telling = {group: num_telling_windows(metric, scored) for group, scored in ours.items()}
    counted = {group: scored for group, scored in ours.items() if telling[group] >= least}
    theirs = (
        {group: panel.theirs[versus].restrict(own[f"{column}={group}"]) for group in counted}
        if versus
        else None
    )
    gap = largest_gap(
        metric,
        counted,
        theirs,
        _weights(panel.ours, how),
        confidence=how["confidence"],
        block_length=how["block_length"],
        overlap=how["overlap"],
    )
    if gap is None:
        return None
    size = gap.size.model_copy(update={"n": min(telling[gap.best], telling[gap.worst])})
    return kpi(
        GAP,
        size,
        joint=size,
        checkpoint=panel.candidate.scored,
        snapshot=panel.candidate.snapshot,
        slice=f"{column}={gap.best} to {gap.worst}",
        versus=versus,
        reference_checkpoint=panel.references[versus].scored if versus else None,
        measured_at=panel.measured_at,
    )
