"""What the model looked at, in the window it answered best, in a typical one and in the worst."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import WindowBatch, Windows
from pipelines.explaining import explain_window
from pipelines.report.story import Answer, Measure, Trace, Which, WindowRead
from pipelines.scoring import Scores, load_scored
from validation.relations import evenly
from validation.statistics import Scored

_TRACES = {"event": 1, "forecast": 2, "detect": 2}  # columns drawn over a window: the series, and one beside
_LISTED = 5  # steps, for each block of questions
_MOST_STEPS = 4096  # of a series that a page carries, evenly spread: more are no longer seen
_MOST_BLOCKS = 16  # of questions, evenly spread
_MEASURES: dict[str, Measure] = {"event": "log_loss", "forecast": "mse", "detect": "rank_error"}


def read_windows(
    checkpoint: Checkpoint, windows: Windows, scores: Scores, density: float
) -> tuple[WindowRead, ...]:
    """The best, the typical and the worst window of a part, by the loss of each alone.

    `scores` are the checkpoint's own on all windows of the part. Where only one or two windows
    were scored, there are as many.
    """
    scored, cutoffs = load_scored(scores), windows.cutoffs(scores.part)
    losses = window_losses(scored, windows.spec.task)
    known = np.flatnonzero(np.isfinite(losses))
    ranked = known[np.argsort(losses[known], kind="stable")]
    return tuple(
        _read(checkpoint, windows, int(cutoffs[number]), density, scored, number).model_copy(
            update={"which": which, "loss": float(losses[number]), "num_windows": len(ranked)}
        )
        for which, number in _picked(ranked).items()
    )


def _picked(ranked: NDArray[np.int64]) -> dict[Which, int]:
    """Numbers of the windows to show, from those in order of their loss; no window twice."""
    places: dict[Which, int] = {"best": 0, "worst": len(ranked) - 1, "typical": len(ranked) // 2}
    found: dict[Which, int] = {}
    for which, place in places.items():
        if len(ranked) and int(ranked[place]) not in found.values():
            found[which] = int(ranked[place])
    order: tuple[Which, ...] = ("best", "typical", "worst")
    return {which: found[which] for which in order if which in found}


def window_losses(scored: Scored, task: str) -> NDArray[np.float64]:
    """[W]: log loss, squared error, or (detect) how far the ranks of a window's steps are from its labels.

    NaN where nothing of a window is scored.
    """
    scores, targets = scored.scores.astype(np.float64), scored.targets.astype(np.float64)
    if task == "event":
        chance = np.clip(scores, 1e-7, 1 - 1e-7)
        loss = -(targets * np.log(chance) + (1 - targets) * np.log(1 - chance))
    elif task == "forecast":
        loss = (scores - targets) ** 2
    else:
        loss = np.abs(targets - _ranks(scores, scored.mask > 0))
    counts = scored.mask.reshape(len(scores), -1).sum(1)
    sums = (np.where(scored.mask > 0, loss, 0.0)).reshape(len(scores), -1).sum(1)
    return np.divide(sums, counts, out=np.full(len(scores), np.nan), where=counts > 0)


def _ranks(scores: NDArray[np.float64], counts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """0 for the lowest of all scores that count, 1 for the highest."""
    known = np.sort(scores[counts])
    return np.searchsorted(known, scores) / max(1, len(known) - 1)


def _read(
    checkpoint: Checkpoint, windows: Windows, cutoff: int, density: float, scored: Scored, number: int
) -> WindowRead:
    batch, spec = windows.batch(np.array([cutoff])), windows.spec
    past = np.arange(windows.lookback if windows.horizon else batch.rows.shape[1])
    shown = evenly(past, _MOST_STEPS)
    return WindowRead(
        measure=_MEASURES[spec.task],
        explanation=explain_window(checkpoint, windows, cutoff, density, _LISTED, _MOST_BLOCKS),
        times=tuple(_iso(windows.time_us[row]) for row in batch.rows[0, shown]),
        traces=_traces(windows, batch, shown),
        answers=_answers(windows, batch, scored, number),
        output=spec.label or spec.target[0],
    )


def _traces(windows: Windows, batch: WindowBatch, shown: NDArray[np.int64]) -> tuple[Trace, ...]:
    """Targets first: they are what people know the series by."""
    spec, names = windows.spec, list(windows.numeric_names)
    own = [name for name in (*spec.target, *spec.numeric) if name in names and name in spec.numeric]
    picked = list(dict.fromkeys(own))[: _TRACES[spec.task]]
    rows = batch.rows[0, shown]
    return tuple(
        Trace(
            name=name,
            values=_known(windows.column(name)[rows], batch.known[0, shown, names.index(name)] > 0),
        )
        for name in picked
    )


def _known(values: NDArray, is_known: NDArray[np.bool_]) -> tuple[float | None, ...]:
    numbers = values.astype(np.float64)
    keep = is_known & np.isfinite(numbers)
    return tuple(float(f"{number:.5g}") if kept else None for number, kept in zip(numbers, keep, strict=True))


def _answers(windows: Windows, batch: WindowBatch, scored: Scored, number: int) -> tuple[Answer, ...]:
    first = windows.lookback if windows.horizon else 0
    shown = evenly(np.arange(scored.scores.shape[1]), _MOST_STEPS)
    rows, counts = batch.rows[0, first + shown], scored.mask[number, shown, 0] > 0
    said, came = scored.scores[number, shown, 0], scored.targets[number, shown, 0]
    return tuple(
        Answer(
            time=_iso(windows.time_us[row]),
            score=float(f"{score:.5g}"),
            truth=float(f"{truth:.5g}") if known else None,
        )
        for row, score, truth, known in zip(rows, said, came, counts, strict=True)
    )


def _iso(microseconds: Any) -> str:
    return str(np.datetime64(int(microseconds), "us").astype("datetime64[s]"))
