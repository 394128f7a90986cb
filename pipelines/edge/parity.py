"""Is the exported graph the checkpoint's function? Tolerances come from float64, not from taste.

Selection is discrete: where two blocks rank equally up to rounding, two correct programs may read different
ones, and then differ visibly. So three things are asked, each with a tolerance of its own.

Arithmetic: the checkpoint is run on the very blocks that the graph read. Their answers may differ by FACTOR
times what the checkpoint's differ by between its precision and float64; for a reduced precision, by what
rounding its maps, queries, keys and values alone does to them (pipelines.edge.precision).

Choice: blocks that the checkpoint would not have read have to be ties, by the same measure of their scores.

Answers, ties included: an engine that keeps both rules may differ by more than arithmetic, because it reads
other blocks where they tie. By how much it may is again what the checkpoint says of itself: it answers with
its ranking shaken as far as the second rule calls a tie, DRAWS times over all windows, and the largest change
is allowed on top of arithmetic. Whose rounding is that large goes beyond it at most once in 1 + DRAWS times
(the largest of exchangeable changes); honest rounding is FACTOR times smaller, and flips that much fewer
blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.edge.rows import Inputs
from pipelines.edge.runtime import Engine, num_selected
from validation.record import Record

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipelines.data.windows import WindowBatch, Windows
    from pipelines.edge.precision import Precision
    from sparse_model.attention import BlockSelection
    from sparse_model.config import Budget
    from sparse_model.layers import Attention
    from sparse_model.model import SparseEncoder

_WINDOWS = 30
FACTOR = 8.0
"""Allowed error, in units of the checkpoint's own: eager float32 against float64 on the same blocks. Both
round about as often, but in other orders; the largest of many differences varies by a small factor."""
DRAWS = 4


class ParityReport(Record):
    """Graph against checkpoint, over windows; outputs before any sigmoid."""

    engine: str
    """What ran the graph (pipelines.edge.runtime)."""
    precision: str
    num_windows: int
    density: float
    max_abs_error: float
    """Each reading the blocks it ranks best: what a user sees, ties included."""
    window_errors: tuple[float, ...]
    """The same, window by window."""
    same_blocks_error: float
    """Both reading the graph's blocks."""
    tolerance: float
    selection_equal: float
    """Share of the blocks read that the checkpoint would have read too, given the same layer input."""
    tie_gap: float
    """Largest lead, by the checkpoint's ranking, of a block that the graph passed over."""
    tie_tolerance: float
    answer_tolerance: float
    """Of `max_abs_error`."""

    @property
    def share(self) -> float:
        """The largest of the three errors, each as a share of its tolerance; NaN where one is NaN."""
        pairs = (
            (self.same_blocks_error, self.tolerance),
            (self.tie_gap, self.tie_tolerance),
            (self.max_abs_error, self.answer_tolerance),
        )
        return _worst([0.0 if error == 0 else float(np.divide(error, allowed)) for error, allowed in pairs])

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return self.share <= 1.0


def parity(
    engine: Engine,
    model: "SparseEncoder",
    windows: Sequence[Inputs],
    density: float,
    precision: "Precision" = "fp32",
) -> ParityReport:
    """Compare an engine's answers with the checkpoint it was made from. Raises ValueError without windows.

    At a reduced `precision` the checkpoint's own error, which is the yardstick, is that of its rounded copy.
    """
    import torch

    from sparse_model.config import Budget

    if not windows:
        raise ValueError("parity: needs at least one window")
    free, results = [], []
    for window in windows:
        blocks = num_selected(density, window.num_steps, model.config.block_size)
        outputs, selected = engine.outputs_and_selected(window, blocks)
        with torch.inference_mode():
            free.append(_error(outputs, model(*_tensors(window, torch.float32), Budget(density))))
        results.append(_on_same_blocks(model, window, outputs, torch.from_numpy(selected), precision))
    tolerance = FACTOR * _worst([result.eager_error for result in results])
    tie_tolerance = FACTOR * _worst([result.score_error for result in results])
    return ParityReport(
        engine=engine.name,
        precision=precision,
        num_windows=len(windows),
        density=density,
        max_abs_error=_worst(free),
        window_errors=tuple(free),
        same_blocks_error=_worst([result.error for result in results]),
        tolerance=tolerance,
        selection_equal=float(np.mean([result.equal for result in results])),
        tie_gap=_worst([result.tie_gap for result in results]),
        tie_tolerance=tie_tolerance,
        answer_tolerance=tolerance + _effect_of_ties(model, windows, density, tie_tolerance),
    )


def parity_inputs(windows: "Windows") -> list[Inputs]:
    """Evenly spread windows of the test part, as the runtime reads them."""
    cutoffs = windows.some_cutoffs("test", _WINDOWS)
    return [next(inputs_of(windows.batch(np.array([cutoff])))) for cutoff in cutoffs]


def inputs_of(batch: "WindowBatch") -> Iterator[Inputs]:
    """What the edge runtime reads, window by window."""
    for arrays in zip(batch.numeric, batch.known, batch.categorical, strict=True):
        yield Inputs(*(np.ascontiguousarray(array) for array in arrays))


class _SameBlocks(NamedTuple):
    error: float
    eager_error: float
    equal: float
    tie_gap: float
    score_error: float


def _on_same_blocks(
    model: "SparseEncoder",
    window: Inputs,
    outputs: NDArray,
    selected_LSJK: "Tensor",
    precision: "Precision",
) -> _SameBlocks:
    import torch

    with torch.no_grad():
        eager, scores = _follow(model, window, selected_LSJK, torch.float32)
        exact, exact_scores = _follow(model, window, selected_LSJK, torch.float64)
    rough, rough_scores = eager, scores
    if precision != "fp32":
        from pipelines.edge.precision import rounded_model

        with torch.enable_grad():  # the plain form of the layers
            rough, rough_scores = _follow(rounded_model(model), window, selected_LSJK, torch.float64)
    choices = [
        _compare_choice(layer_scores, indices, model.config.block_size, model.config.causal)
        for layer_scores, indices in zip(scores, selected_LSJK, strict=True)
    ]
    return _SameBlocks(
        error=_error(outputs, eager),
        eager_error=_error(rough.numpy(), exact),
        equal=float(np.mean([equal for equal, _ in choices])),
        tie_gap=_worst([gap for _, gap in choices]),
        score_error=_worst([_score_error(*pair) for pair in zip(rough_scores, exact_scores, strict=True)]),
    )


def _effect_of_ties(
    model: "SparseEncoder", windows: Sequence[Inputs], density: float, tie_tolerance: float
) -> float:
    """Largest change of the checkpoint's answers when it takes ties for one another; NaN where those are."""
    import torch

    from sparse_model.config import Budget

    if not np.isfinite(tie_tolerance):
        return float("nan")
    shaken, chance = deepcopy(model), torch.Generator().manual_seed(0)
    for attention in _choosing(shaken):
        setattr(attention, "select", _shaking(attention, tie_tolerance, chance))  # noqa: B010
    changes = []
    with torch.inference_mode():
        for inputs in (_tensors(window, torch.float32) for window in windows):
            plain = model(*inputs, Budget(density))
            changes += [_error(plain.numpy(), shaken(*inputs, Budget(density))) for _ in range(DRAWS)]
    return _worst(changes)


def _shaking(
    attention: "Attention", tie_tolerance: float, chance: "torch.Generator"
) -> Callable[..., "BlockSelection"]:
    """Two scores that differ by the tolerance may come to lie either way."""
    import torch

    from sparse_model.attention import block_scores, select_blocks

    size, causal = attention.config.block_size, attention.config.causal

    def select(x_BNW: "Tensor", budget: "Budget", *_: object) -> "BlockSelection":
        queries, keys = attention.selector(x_BNW)
        scores = block_scores(queries, keys, size, causal)
        noise = (torch.rand(scores.shape, generator=chance) - 0.5) * tie_tolerance
        return select_blocks(scores + noise, budget.num_selected(scores.shape[-1]), size, causal)

    return select


def _choosing(model: "SparseEncoder") -> list["Attention"]:
    """Of the layers that choose blocks, in order."""
    from sparse_model.layers import Layer

    layers = (layer for layer in model.layers if isinstance(layer, Layer))
    return [layer.attention for layer in layers if not layer.attention.reads_all]


def _follow(
    model: "SparseEncoder", window: Inputs, selected_LSJK: "Tensor", dtype: "torch.dtype"
) -> tuple["Tensor", list["Tensor"]]:
    """The checkpoint's outputs on the given blocks, and its own block scores [1, S, J, J] of every layer."""
    from sparse_model.config import Budget

    follower = deepcopy(model).to(dtype)
    scores: list[Tensor] = []
    for attention, indices_SJK in zip(_choosing(follower), selected_LSJK, strict=True):
        setattr(attention, "select", _reading(attention, indices_SJK, scores))  # noqa: B010
    return follower(*_tensors(window, dtype), Budget()), scores


def _reading(
    attention: "Attention", indices_SJK: "Tensor", scores: list["Tensor"]
) -> Callable[..., "BlockSelection"]:
    from sparse_model.attention import block_scores

    def select(x_BNW: "Tensor", *_: object) -> "BlockSelection":
        size = attention.config.block_size
        queries, keys = attention.selector(x_BNW)
        causal = attention.config.causal
        scores.append(block_scores(queries, keys, size, causal))
        return _selection(indices_SJK, size, causal)

    return select


def _selection(indices_SJK: "Tensor", block_size: int, causal: bool) -> "BlockSelection":
    """As the model knows it: ascending, and of a causal model only what does not lie ahead."""
    import torch

    from sparse_model.attention import BlockSelection

    num_blocks, most = indices_SJK.shape[1:]
    visible_J = torch.arange(1, num_blocks + 1) if causal else torch.full((num_blocks,), num_blocks)
    counts_SJ = visible_J.clamp_max(most).expand(indices_SJK.shape[:2])
    return BlockSelection(indices_SJK.sort(-1).values[None], counts_SJ[None], block_size)


def _compare_choice(
    scores_BSJJ: "Tensor", indices_SJK: "Tensor", block_size: int, causal: bool
) -> tuple[float, float]:
    """Share of equal choices, and the largest score by which a passed-over block leads one that was read."""
    import torch

    from sparse_model.attention import select_blocks

    own = select_blocks(scores_BSJJ, indices_SJK.shape[2], block_size, causal).read_mask()
    read = _selection(indices_SJK, block_size, causal).read_mask()
    passed_over = scores_BSJJ.masked_fill(~(own & ~read), -torch.inf).amax(-1)
    taken = scores_BSJJ.masked_fill(~(read & ~own), torch.inf).amin(-1)
    gap = float((passed_over - taken).clamp_min(0.0).max())
    return float((own & read).sum() / own.sum()), gap


def _tensors(window: Inputs, dtype: "torch.dtype") -> tuple["Tensor", "Tensor", "Tensor"]:
    import torch

    numeric, known, categorical = (torch.from_numpy(array)[None] for array in window)
    return numeric.to(dtype), known.to(dtype), categorical


def _error(ours: NDArray, theirs: "Tensor") -> float:
    return float(np.abs(ours - theirs.numpy()).max())


def _score_error(ours: "Tensor", theirs: "Tensor") -> float:
    """Blocks that lie ahead have no score, here and there."""
    return _error(ours.nan_to_num(neginf=0.0).numpy(), theirs.nan_to_num(neginf=0.0))


def _worst(values: Sequence[float]) -> float:
    return float(np.max(values))  # unlike max(), carries NaN
