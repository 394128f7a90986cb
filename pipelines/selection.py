"""Which blocks a model reads: how far back, how evenly, and what it misses. Moves before the answers do."""

import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.data.windows import Windows
from pipelines.explaining import to_inputs
from validation.effects import FEWEST_BLOCKS, Effect, with_usual
from validation.record import Record
from validation.relations import evenly

_WINDOWS = 32  # evenly spread over a part
_STEPS = 64  # of a window's asked steps: their dense rows are run to see what was missed


class SelectionProfile(Record):
    """What was read in some windows of a part, in order of time; means over asked steps, layers and heads.

    `lags[w][d]` is the share of window w's reads that go to the block d blocks away. `entropy[w]` is that of
    the lags, as a share of the largest possible. `missed[w]` is dense attention's mass that neither exact
    reading nor summaries carry.
    """

    lags: tuple[tuple[float, ...], ...]
    entropy: tuple[float, ...]
    missed: tuple[float, ...]


def profile(
    checkpoint: Checkpoint, windows: Windows, part: str, density: float, num_windows: int = _WINDOWS
) -> SelectionProfile:
    """The profile of evenly spread windows of `part`."""
    import torch

    from sparse_model.config import Budget
    from sparse_model.explanation import audit, explain

    model, budget = load_model(checkpoint), Budget(density)
    first = windows.lookback if windows.horizon else 0
    steps = evenly(np.arange(first, windows.lookback + windows.horizon), _STEPS)
    lags, missed = [], []
    for cutoff in windows.some_cutoffs(part, num_windows):
        inputs = to_inputs(windows.batch(np.array([cutoff])))
        rows = torch.from_numpy(steps)
        read = explain(model, *inputs, budget, rows).is_read_BLHPJ[0].double().mean((0, 1)).numpy()
        lags.append(_by_lag(read, steps // model.config.block_size))
        missed.append(float(audit(model, *inputs, budget, rows).missed.mean()))
    return SelectionProfile(
        lags=tuple(tuple(each) for each in lags),
        entropy=tuple(_entropy(each) for each in lags),
        missed=tuple(missed),
    )


def compare_profiles(reference: SelectionProfile, batch: SelectionProfile) -> list[Effect]:
    """How differently the batch was read, beside what stretches of the reference differ by themselves."""
    pieces = np.array_split(np.arange(len(reference.lags)), FEWEST_BLOCKS)
    blocks = [_part(reference, piece) for piece in pieces if len(piece)]
    return with_usual(_effects(reference, batch), [_effects(reference, block) for block in blocks])


def _effects(old: SelectionProfile, new: SelectionProfile) -> list[Effect]:
    before, after = np.mean(old.lags, axis=0), np.mean(new.lags, axis=0)
    return [
        Effect(kind="selection", subject="blocks read", measure="lags", value=_distance(before, after)),
        Effect(
            kind="selection",
            subject="blocks read",
            measure="entropy",
            value=abs(float(np.mean(new.entropy) - np.mean(old.entropy))),
        ),
        Effect(
            kind="selection",
            subject="attention",
            measure="missed",
            value=max(0.0, float(np.mean(new.missed) - np.mean(old.missed))),
        ),
    ]


def _distance(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Total variation."""
    return float(np.abs(before - after).sum() / 2)


def _part(whole: SelectionProfile, windows: NDArray[np.int64]) -> SelectionProfile:
    return SelectionProfile(
        lags=tuple(whole.lags[each] for each in windows),
        entropy=tuple(whole.entropy[each] for each in windows),
        missed=tuple(whole.missed[each] for each in windows),
    )


def _by_lag(read_PJ: NDArray[np.float64], own_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """[J]: share of all reads that go to a block that many blocks away."""
    distance = np.abs(own_P[:, None] - np.arange(read_PJ.shape[1]))
    counts = np.bincount(distance.ravel(), read_PJ.ravel(), minlength=read_PJ.shape[1])
    return counts / counts.sum()


def _entropy(shares: NDArray[np.float64]) -> float:
    """0 where one lag gets everything, 1 where all get the same."""
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(len(shares))) if len(shares) > 1 else 0.0
