"""Shifts that are planted into batches from some point on, as large as the goal speaks of: 0.5 and 1 sd."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.benchmarks.drift.streams import Columns, Stream

Change = Callable[[Columns, int, np.random.Generator], Columns]


@dataclass(frozen=True)
class Plant:
    """`change` alters a batch, given how many batches ago the shift began; `subjects` are where it shows."""

    kind: str
    column: str
    change: Change
    subjects: frozenset[str]
    since: int = 0
    """Batches after the beginning at which it has reached half a standard deviation."""
    is_fault: bool = False


RAMP_STEP = 0.1  # standard deviations more with every batch
_RAMP_SINCE = 4


def plants(stream: Stream, column: str) -> list[Plant]:
    """Every shift that can be planted into a numeric column of a stream, and into its outcome."""
    values = stream.reference[column]
    known = values[np.isfinite(values)]
    mean, std, own = float(known.mean()), float(known.std()), frozenset({column})
    partner = _partner(stream, column)
    found = [
        Plant("level +0.5 sd", column, _on(column, lambda x, *_: x + 0.5 * std), own),
        Plant("level +1 sd", column, _on(column, lambda x, *_: x + std), own),
        Plant(
            "spread x 1.5", column, _on(column, lambda x, *_: np.nanmean(x) + 1.5 * (x - np.nanmean(x))), own
        ),
        Plant("20% missing", column, _on(column, _with_holes), own),
        Plant(
            "slow ramp, 0.1 sd a batch",
            column,
            _on(column, lambda x, age, _: x + RAMP_STEP * (age + 1) * std),
            own,
            since=_RAMP_SINCE,
        ),
        Plant("stuck sensor", column, _on(column, _stuck), own, is_fault=True),
        Plant("unit times 100", column, _on(column, lambda x, *_: 100 * x), own, is_fault=True),
    ]
    if partner is not None:
        mix = _mixed(column, partner, mean, std)
        found.append(Plant("correlation by 0.5", column, mix, frozenset({column, partner})))
    return found


def outcome_plants(stream: Stream) -> list[Plant]:
    """More positive outcomes, and a site that falls silent."""
    found = []
    if stream.outcome is not None:
        shown = frozenset({stream.outcome, "dep_delay"})  # whoever leaves late has a delay
        found.append(Plant("label shift, +0.5 sd", stream.outcome, _more_positives(stream.outcome), shown))
    for site in stream.sites[:1]:
        largest = _most_common(stream.reference[site])
        silent = _without(site, largest)
        found.append(Plant("missing site", site, silent, frozenset({f"{site}={largest}"}), is_fault=True))
    return found


def _on(column: str, change: Callable[[NDArray, int, np.random.Generator], NDArray]) -> Change:
    def changed(batch: Columns, age: int, random: np.random.Generator) -> Columns:
        return batch | {column: change(batch[column], age, random)}

    return changed


def _with_holes(values: NDArray, age: int, random: np.random.Generator) -> NDArray:
    return np.where(random.random(len(values)) < 0.2, np.nan, values)


def _stuck(values: NDArray, age: int, random: np.random.Generator) -> NDArray:
    """From the middle of the first batch on."""
    start = len(values) // 2 if age == 0 else 0
    known = values[start:][np.isfinite(values[start:])]
    return np.where(np.arange(len(values)) >= start, known[0] if len(known) else 0.0, values)


def _partner(stream: Stream, column: str) -> str | None:
    """Another column that moves, and has little to do with this one."""
    import pandas as pd

    from validation.effects import is_numeric

    names = [
        name
        for name, values in stream.reference.items()
        if name not in (column, stream.outcome) and is_numeric(values) and np.nanstd(values) > 0
    ]
    if not names:
        return None
    table = pd.DataFrame({name: stream.reference[name].astype(np.float64) for name in (column, *names)})
    related = table[names].corrwith(table[column], method="spearman").abs().fillna(0.0)
    return names[int(related.to_numpy().argmin())]


def _mixed(column: str, partner: str, mean: float, std: float) -> Change:
    """Half of the partner's standard score in, as much of the own out: mean and spread stay."""

    def changed(batch: Columns, age: int, random: np.random.Generator) -> Columns:
        own, other = batch[column], batch[partner]
        score = (other - np.nanmean(other)) / (np.nanstd(other) or 1.0)
        mixed = np.nanmean(own) + np.sqrt(0.75) * (own - np.nanmean(own)) + 0.5 * np.nanstd(own) * score
        return batch | {column: mixed}

    return changed


def _more_positives(outcome: str) -> Change:
    """The same rows drawn again, positives so often that their share is half a standard deviation higher."""

    def changed(batch: Columns, age: int, random: np.random.Generator) -> Columns:
        share = float(np.nanmean(batch[outcome]))
        wanted = share + 0.5 * np.sqrt(share * (1 - share))
        positive = batch[outcome] == 1
        weights = np.where(positive, wanted / share, (1 - wanted) / (1 - share))
        rows = np.sort(random.choice(len(weights), len(weights), p=weights / weights.sum()))
        return {name: values[rows] for name, values in batch.items()}

    return changed


def _most_common(values: NDArray) -> str:
    names, counts = np.unique(values.astype(str), return_counts=True)
    return str(names[counts.argmax()])


def _without(site: str, name: str) -> Change:
    def changed(batch: Columns, age: int, random: np.random.Generator) -> Columns:
        keep = batch[site].astype(str) != name
        return {column: values[keep] for column, values in batch.items()}

    return changed
