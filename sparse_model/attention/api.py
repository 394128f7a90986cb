"""The one door to block-sparse attention: checks the arguments once, then calls a named implementation."""

from collections.abc import Callable

from torch import Tensor

from sparse_model.attention import cpu, reference
from sparse_model.attention.selection import BlockSelection, num_blocks_of

_IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {"reference": reference.attend, "cpu": cpu.attend}


def attend(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    selection: BlockSelection,
    *,
    causal: bool = False,
    lengths_B: Tensor | None = None,
    summaries: bool = True,
    implementation: str = "cpu",
) -> Tensor:
    """Attention that reads the selected key blocks exactly and every other block as one summary.

    Args:
        q_BHND: queries, [batch, heads, steps, channels]; any number of steps from 1 up.
        k_BGND, v_BGND: keys and values; G divides H (grouped-query attention).
        selection: key blocks that each query block reads; its selector heads divide H.
        causal: a step sees itself and earlier steps only.
        lengths_B: steps that exist in each sequence; later ones are padding and give zeros.
        summaries: read the blocks that were not selected as their mean key and mean value.
        implementation: "reference" (defines what is right) or "cpu"; it runs or raises.

    Returns: [B, H, N, D]. Raises ValueError naming the argument that does not fit.
    """
    _check(q_BHND, k_BGND, v_BGND, selection, lengths_B)
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"implementation: {implementation!r} is not one of {sorted(_IMPLEMENTATIONS)}")
    return _IMPLEMENTATIONS[implementation](q_BHND, k_BGND, v_BGND, selection, causal, lengths_B, summaries)


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
    expected = num_blocks_of(q.shape[2], selection.block_size)
    if selection.num_blocks != expected:
        raise ValueError(f"selection: {selection.num_blocks} query blocks, but {q.shape[2]} steps make {expected}")
    if selection.indices_BSQK.shape[0] != q.shape[0] or q.shape[1] % selection.indices_BSQK.shape[1]:
        raise ValueError(f"selection: shape {tuple(selection.indices_BSQK.shape)} does not fit q {tuple(q.shape)}")
    if lengths_B is not None and lengths_B.shape != (q.shape[0],):
        raise ValueError(f"lengths: expected shape ({q.shape[0]},), got {tuple(lengths_B.shape)}")
