"""What a launch of the GPU kernels is about (sizes, flags, lists, where rows lie in memory), and the launch.

Shape suffixes: B batch, H heads, S selector heads, N steps, D channels, Q query blocks, K slots, W words.
"""

# Triton compiles the kernels and knows their types; it is not installed everywhere.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
import itertools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor as PlainDescriptor


class Lists(NamedTuple):
    """Which blocks every query block reads, as lists and as bits; made once, used forward and backward."""

    indices_BSQK: Tensor
    """Ascending block numbers."""
    counts_BSQ: Tensor
    """Valid entries of each list."""
    full_BSQ: Tensor
    """int32, how many of them, from the start, need no mask."""
    bits_BSQW: Tensor
    """int32, one bit per key block."""


class Transposed(NamedTuple):
    """Which query blocks read every key block, for each list head."""

    readers: Tensor
    """int32, query blocks, ascending for each key block."""
    offsets: Tensor
    """int32 [B * S * J + 1], where the readers of each key block begin."""
    order: Tensor
    """int32 [B * S * J], the key blocks of a list head, those with most readers first."""


class Descriptor(NamedTuple):
    """A two-dimensional tensor in tiles, as a compiled kernel takes it (see `launch`)."""

    base: Tensor
    shape: list[int]
    strides: list[int]
    block_shape: list[int]
    padding: str = "zero"


class Rows(NamedTuple):
    """A [B, H, N, D] tensor as two-dimensional rows: how far a sequence and a head lie apart."""

    tensor: Tensor
    row_b: int
    row_h: int
    col_h: int

    def tile(self, rows: int) -> Descriptor:
        """Descriptor for tiles of `rows` steps and all channels of a head."""
        t = self.tensor
        batch, heads, steps, channels = t.shape
        height = (batch - 1) * self.row_b + (heads - 1) * self.row_h + steps
        width = (heads - 1) * self.col_h + channels
        return Descriptor(t, [height, width], [t.stride(2), 1], [rows, triton.next_power_of_2(channels)])

    @property
    def steps_apart(self) -> tuple[int, int, int]:
        return self.row_b, self.row_h, self.col_h


def rows_of(t_BHND: Tensor) -> Rows:
    """View as rows where the memory order allows it, else copy: the copy engine wants 16-byte strides."""
    batch, heads, steps, channels = t_BHND.shape
    stride_b, stride_h, stride_n, stride_d = t_BHND.stride()
    per_16_bytes = 16 // t_BHND.element_size()
    packed = (
        stride_d == 1
        and stride_n % per_16_bytes == 0
        and stride_n >= channels
        and t_BHND.data_ptr() % 16 == 0
        and (batch == 1 or stride_b % stride_n == 0)
    )
    row_b = stride_b // max(stride_n, 1)
    if packed and (heads == 1 or stride_h % stride_n == 0):
        return Rows(t_BHND, row_b, 0 if heads == 1 else stride_h // stride_n, 0)
    side_by_side = stride_n >= stride_h * heads and channels == triton.next_power_of_2(channels)
    if packed and side_by_side and stride_h % per_16_bytes == 0:
        return Rows(t_BHND, row_b, 0, stride_h)
    return Rows(t_BHND.contiguous(), heads * steps, steps, 0)


class Problem(NamedTuple):
    """Sizes and kernel flags that every launch of one call shares."""

    heads: int
    groups: int
    rankings: int
    num_steps: int
    num_blocks: int
    slots: int
    words: int
    block_size: int
    channels: int
    causal: bool
    summaries: bool
    lengths_B: Tensor | None
    batch: int
    float32: bool
    key: int
    """Stands for all of it that a launch depends on; see `launch`."""

    @property
    def scale(self) -> float:
        return self.channels**-0.5

    @property
    def query_blocks(self) -> int:
        """Blocks of queries, of whose keys there may be more (`num_blocks`)."""
        return -(-self.num_steps // self.block_size)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.heads, self.groups, self.rankings, self.num_steps, self.num_blocks

    def flags(self, *names: str) -> dict[str, Any]:
        values: dict[str, Any] = {
            "BLOCK": self.block_size,
            "D": self.channels,
            "D_POW2": triton.next_power_of_2(self.channels),
            "WORDS_POW2": triton.next_power_of_2(self.words),
            "SLOTS_POW2": triton.next_power_of_2(self.slots),
            "CAUSAL": self.causal,
            "SUMMARIES": self.summaries,
            "HAS_LIMIT": self.lengths_B is not None,
            "PRECISION": "ieee" if self.float32 else "tf32",
        }
        return {name: values[name] for name in names}


def problem_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    size: int,
    causal: bool,
    lengths: Tensor | None,
    summaries: bool,
    num_blocks: int | None = None,
) -> Problem:
    """`num_blocks` is that of the keys where they are of a longer sequence than the queries, which one head
    at a time may be: the kernels take it for the distance between two heads' lists too."""
    num_blocks = num_blocks or indices.shape[2]
    return Problem(
        heads=q.shape[1],
        groups=k.shape[1],
        rankings=indices.shape[1],
        num_steps=q.shape[2],
        num_blocks=num_blocks,
        slots=indices.shape[3],
        words=-(-num_blocks // 32),
        block_size=size,
        channels=q.shape[3],
        causal=causal,
        summaries=summaries,
        lengths_B=lengths,
        batch=q.shape[0],
        float32=q.dtype == torch.float32,
        key=key_of(size, causal, summaries, num_blocks, q, k, v, indices, counts, lengths),
    )


_KEYS: dict[Any, int] = {}
_NUMBERS = itertools.count()


def key_of(*settings: Any) -> int:
    """A number for these settings and for what Triton specialises a kernel on in these tensors."""
    key = tuple(
        (t.dtype, t.device.index, t.shape, t.stride(), t.data_ptr() % 16) if isinstance(t, Tensor) else t
        for t in settings
    )
    return _KEYS.setdefault(key, next(_NUMBERS))


_COMPILED: dict[Any, Any] = {}
_MOST_COMPILED = 4096  # sequences of very many lengths must not fill the memory


def launch(kernel: Any, grid: tuple[int, ...], key: Any, *arguments: Any, **options: Any) -> None:
    """Run a kernel; from the second time on without Triton's look-up, 40 us of host time for 50 arguments.

    Arguments come in the kernel's order and its constants by name. An equal `key` promises equal dtypes,
    sizes, strides and alignment of everything.
    """
    full_key = (id(kernel), key, *options.values())
    found = _COMPILED.get(full_key)
    if found is None:
        described = (_described(a, kernel) if isinstance(a, Descriptor) else a for a in arguments)
        compiled = kernel[grid](*described, **options)
        if compiled is not None:  # Triton's interpreter compiles nothing
            constants = tuple(options[name] for name in kernel.arg_names[len(arguments) :])
            if len(_COMPILED) >= _MOST_COMPILED:
                _COMPILED.clear()
                _KEYS.clear()
            _COMPILED[full_key] = compiled, constants
        return
    compiled, constants = found
    compiled[(*grid, 1, 1)[:3]](*arguments, *constants)


def _described(tile: Descriptor, kernel: Any) -> Any:
    """The tile as the argument that Triton compiles for: Gluon's also says how it lies in shared memory."""
    plain = PlainDescriptor(tile.base, tile.shape, tile.strides, tile.block_shape)
    if not getattr(kernel, "is_gluon", bool)():
        return plain
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    dtype = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[tile.base.dtype]
    layout = gl.NVMMASharedLayout.get_default_for(tile.block_shape, dtype)
    return TensorDescriptor(plain.base, plain.shape, plain.strides, plain.block_shape, layout)
