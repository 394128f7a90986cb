"""The one door to block-sparse attention: checks the arguments once, then calls a named implementation."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparse_model.attention import cpu, reference, selection
from sparse_model.attention.selection import BlockSelection, num_blocks_of
from sparse_model.config import Budget

_LOG = logging.getLogger(__name__)
_IMPLEMENTATIONS = ("reference", "cpu", "triton")

DENSE_BELOW_STEPS = {"cuda": 16_384, "cpu": 4096}
"""Sequence length below which "auto" is dense. H100, 1/8 of the blocks: on the device alone sparse wins from
4,096 steps, but an eager forward takes the host 0.36 ms, more than dense attention of 8,192 steps takes in
all (0.29 ms); at 16,384 dense takes 1.1 ms. The CPU's is from earlier figures."""


def sparse_attention(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    sq_BSNE: Tensor,
    sk_BSNE: Tensor,
    budget: Budget,
    *,
    block_size: int,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    summaries: bool = True,
    implementation: str = "auto",
) -> Tensor:
    """Rank the blocks by the selector's queries and keys, read the best exactly and the rest as summaries.

    Gradients flow to q, k and v, through the steps read and through the summaries. None flows through the
    choice of blocks, which is a step function of the selector: the selector learns from
    `sparse_model.losses.selector_terms`, the divergence of its block masses from those of the attention that
    it replaces, on a few probe rows. (A gate on the logits instead was tried and did not learn: accuracy .51
    against 1.00 on planted recall.)

    Args:
        q_BHND, k_BGND, v_BGND: as in `attend`.
        sq_BSNE, sk_BSNE: selector queries and keys, [batch, rankings, steps, channels]; rankings divide H.
        budget: share of key blocks that a query block reads exactly.
        block_size: steps of a block.
        implementation: as in `attend`, and "auto": dense attention where that is faster, else what suits the
            device; the choice is logged.

    Returns: [B, H, N, D]. Raises ValueError naming the argument that does not fit.
    """
    _check_selector(sq_BSNE, sk_BSNE, q_BHND)
    if not isinstance(budget, Budget):
        raise ValueError(f"budget: expected a Budget, got {budget!r}")
    if block_size < 1:
        raise ValueError(f"block_size: must be at least 1, got {block_size}")
    _check_implementation(implementation, "auto", "dense")
    if implementation == "auto":
        implementation = resolve(q_BHND, budget)
        _LOG.info("auto: %s for %d steps on %s", implementation, q_BHND.shape[2], q_BHND.device.type)
    if implementation == "dense":
        return dense(q_BHND, k_BGND, v_BGND, causal, lengths_B)
    num_selected = budget.num_selected(num_blocks_of(q_BHND.shape[2], block_size))
    chosen = select(
        sq_BSNE,
        sk_BSNE,
        num_selected,
        block_size,
        causal=causal,
        lengths_B=lengths_B,
        implementation=implementation,
    )
    return attend(
        q_BHND,
        k_BGND,
        v_BGND,
        chosen,
        causal=causal,
        lengths_B=lengths_B,
        summaries=summaries,
        implementation=implementation,
    )


def resolve(q_BHND: Tensor, budget: Budget) -> str:
    """What "auto" stands for: "dense" for short sequences or a whole budget, else the device's own."""
    if q_BHND.shape[2] < DENSE_BELOW_STEPS[q_BHND.device.type] or budget.density >= 0.5:
        return "dense"
    return of_device(q_BHND.device)


def of_device(device: torch.device) -> str:
    """The sparse implementation for a device."""
    return "triton" if device.type == "cuda" else "cpu"


def dense(q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, causal: bool, lengths_B: Tensor | None) -> Tensor:
    """Attention that reads everything, by the fastest kernel that PyTorch has; padding rows are zero."""
    grouped = q_BHND.shape[1] != k_BGND.shape[1]
    if lengths_B is None:
        return scaled_dot_product_attention(q_BHND, k_BGND, v_BGND, is_causal=causal, enable_gqa=grouped)
    steps = torch.arange(q_BHND.shape[2], device=q_BHND.device)
    exists_BN = steps < lengths_B[:, None]
    mask = exists_BN[:, None, None, :]
    if causal:
        mask = mask & (steps[None, :] <= steps[:, None])
    out = scaled_dot_product_attention(q_BHND, k_BGND, v_BGND, attn_mask=mask, enable_gqa=grouped)
    return out.masked_fill(~exists_BN[:, None, :, None], 0.0)


def select(
    sq_BSNE: Tensor,
    sk_BSNE: Tensor,
    num_selected: int,
    block_size: int,
    *,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    ranking_noise: float = 0.0,
    top_p: float | None = None,
    implementation: str | None = None,
) -> BlockSelection:
    """The blocks to read, ranked by the selector; no gradient flows through the choice.

    Args:
        sq_BSNE, sk_BSNE: selector queries and keys, [batch, rankings, steps, channels].
        num_selected: key blocks per query block, at most.
        ranking_noise: standard deviation of noise on the scores: exploration in training.
        top_p: read fewer where fewer hold this share of the scores; `num_selected` stays the cap.
        implementation: as in `attend`; None is the device's own.

    Raises ValueError naming the argument that does not fit. NaN scores are refused, except on the GPU path,
    which never waits for the device: there their rank is undefined.
    """
    _check_selector(sq_BSNE, sk_BSNE)
    implementation = implementation or of_device(sq_BSNE.device)
    _check_implementation(implementation)
    with torch.no_grad():
        gpu = _gpu() if implementation == "triton" else None
        score = gpu.block_scores if gpu else selection.block_scores
        scores = score(sq_BSNE, sk_BSNE, block_size, causal, lengths_B)
        if ranking_noise:
            scores = scores + ranking_noise * torch.randn_like(scores)
        choose = gpu.select_blocks if gpu else selection.select_blocks
        return choose(scores, num_selected, block_size, causal, lengths_B, top_p)


def attend(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    selection: BlockSelection,
    *,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    summaries: bool = True,
    implementation: str | None = None,
) -> Tensor:
    """Attention that reads the selected key blocks exactly and every other block as one summary.

    Args:
        q_BHND: queries, [batch, heads, steps, channels]; any number of steps from 1 up.
        k_BGND, v_BGND: keys and values; G divides H (grouped-query attention).
        selection: key blocks that each query block reads; its selector heads divide H.
        causal: a step sees itself and earlier steps only.
        lengths_B: steps that exist in each sequence, 0 to N; later ones are padding and give zeros.
        summaries: read the blocks that were not selected as their mean key and mean value.
        implementation: "reference" (defines what is right), "cpu" or "triton" (GPU); a named one runs or
            raises. None is the device's own.

    Forward and backward of "triton" add every sum in a fixed order, whatever
    `torch.use_deterministic_algorithms` says: equal inputs on one GPU model give equal bits. "cpu" and
    "reference" are as deterministic as the PyTorch functions they call.

    Returns: [B, H, N, D]. Raises ValueError naming the argument that does not fit.
    """
    _check(q_BHND, k_BGND, v_BGND, selection, lengths_B)
    implementation = implementation or of_device(q_BHND.device)
    _check_implementation(implementation)
    maker = _maker(implementation)
    return maker(q_BHND, k_BGND, v_BGND, selection, causal, lengths_B, summaries)


def _maker(implementation: str) -> Callable[..., Tensor]:
    if implementation == "triton":
        return _gpu().attend
    return {"reference": reference.attend, "cpu": cpu.attend}[implementation]


def _gpu():  # type: ignore[no-untyped-def]
    from sparse_model.attention import triton  # needs a package that machines without a GPU lack

    return triton


def _check_implementation(name: str, *more: str) -> None:
    if name not in (*more, *_IMPLEMENTATIONS):
        raise ValueError(f"implementation: {name!r} is not one of {(*more, *_IMPLEMENTATIONS)}")


def _check_selector(sq: Tensor, sk: Tensor, q: Tensor | None = None) -> None:
    if sq.ndim != 4:
        raise ValueError(f"sq: expected [batch, rankings, steps, channels], got shape {tuple(sq.shape)}")
    if sk.shape != sq.shape or sk.device != sq.device:
        raise ValueError(
            f"sk: {tuple(sk.shape)} on {sk.device} does not fit sq, {tuple(sq.shape)} on {sq.device}"
        )
    if q is None:
        return
    if (sq.shape[0], sq.shape[2]) != (q.shape[0], q.shape[2]) or q.shape[1] % sq.shape[1]:
        raise ValueError(f"sq: shape {tuple(sq.shape)} does not fit q {tuple(q.shape)}")
    if sq.device != q.device:
        raise ValueError(f"sq: on {sq.device}, but q is on {q.device}")


def _check(q: Tensor, k: Tensor, v: Tensor, selection: BlockSelection, lengths_B: Tensor | None) -> None:
    if q.ndim != 4:
        raise ValueError(f"q: expected [batch, heads, steps, channels], got shape {tuple(q.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.ndim != 4 or (tensor.shape[0], *tensor.shape[2:]) != (q.shape[0], *q.shape[2:]):
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not fit q {tuple(q.shape)}")
        if q.shape[1] % tensor.shape[1]:
            raise ValueError(f"{name}: {tensor.shape[1]} heads do not divide the {q.shape[1]} heads of q")
        if tensor.device != q.device or tensor.dtype != q.dtype:
            raise ValueError(f"{name}: {tensor.dtype} on {tensor.device}, but q is {q.dtype} on {q.device}")
    steps, expected = q.shape[2], num_blocks_of(q.shape[2], selection.block_size)
    if selection.num_blocks != expected:
        raise ValueError(f"selection: {selection.num_blocks} query blocks, but {steps} steps make {expected}")
    lists = selection.indices_BSQK
    if lists.shape[0] != q.shape[0] or q.shape[1] % lists.shape[1]:
        raise ValueError(f"selection: shape {tuple(lists.shape)} does not fit q {tuple(q.shape)}")
    if selection.counts_BSQ.shape != lists.shape[:3]:
        raise ValueError(
            f"selection: {tuple(selection.counts_BSQ.shape)} counts for {tuple(lists.shape)} lists"
        )
    if lists.device != q.device:
        raise ValueError(f"selection: on {lists.device}, but q is on {q.device}")
    if lengths_B is not None and lengths_B.shape != (q.shape[0],):
        raise ValueError(f"lengths: expected shape ({q.shape[0]},), got {tuple(lengths_B.shape)}")
    if lengths_B is not None and lengths_B.device != q.device:
        raise ValueError(f"lengths: on {lengths_B.device}, but q is on {q.device}")
