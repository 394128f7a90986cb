"""Attention over sequences that are spread over processes: each holds a shard of the steps, and reads the
others'.

What travels: the selector's keys of every step (a few channels), the summary of every block, and of keys and
values only the blocks that somebody selected, from their owner to who reads them.

Every process numbers the blocks from its own first one on, around the end: block j is number
(j - first) mod J. Own blocks come first everywhere, so the kernels, which count their rows from 0, serve any
shard; nothing here depends on which number is earlier.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps of the shard, D channels,
E selector channels, Q blocks of the shard, J blocks of the sequence, K selected blocks, W processes,
T blocks fetched, R steps of a block, X = R * D, C query blocks of one chunk.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn.functional import embedding

from sparse_model.attention import cpu, selection
from sparse_model.attention.api import of_device
from sparse_model.attention.selection import BlockSelection
from sparse_model.config import Budget

_CHUNK_ELEMENTS = 1 << 24  # gathered key elements held at once by the portable path


class Fetched(NamedTuple):
    """Keys and values of the blocks that this process reads, and where each block lies."""

    k_TX: Tensor
    v_TX: Tensor
    place_BGJ: Tensor
    """int64; 0 for a block that is not read."""


class Shards:
    """Equal, consecutive shards of a batch of sequences, one a process of `group`; whole blocks only.

    Every method is called by all processes together. `received_bytes` counts what other processes sent here.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.count = distributed.get_rank(group), distributed.get_world_size(group)
        self.received_bytes = 0

    def first_step(self, num_steps: int) -> int:
        """Number of the shard's first step in the sequence."""
        return self.rank * num_steps

    def gather(self, t: Tensor, dim: int) -> Tensor:
        """The shards of `t` side by side along `dim`, this process's own first; with its gradient."""
        self.received_bytes += (self.count - 1) * t.numel() * t.element_size()
        parts = list(_Gather.apply(t.contiguous(), self.group).unbind())
        return torch.cat(parts[self.rank :] + parts[: self.rank], dim=dim)

    @torch.no_grad()
    def select(
        self,
        sq_BSNE: Tensor,
        sk_BSNE: Tensor,
        budget: Budget,
        block_size: int,
        implementation: str | None = None,
    ) -> BlockSelection:
        """The blocks of the whole sequence that the shard's query blocks read, in this process's numbers.

        Same choice as `attention.select` on one device, but among blocks that score alike. `implementation`
        as in `attention.select`. Raises ValueError for a shard that is not of whole blocks.
        """
        _check_whole(sq_BSNE, block_size)
        sk_all = self.gather(sk_BSNE, dim=2)
        if (implementation or of_device(sq_BSNE.device)) == "triton":
            from sparse_model.attention import triton_sharded

            scores = triton_sharded.block_scores(sq_BSNE, sk_all, block_size)
        else:
            scores = selection.block_scores(sq_BSNE, sk_all, block_size)
        return selection.select_blocks(scores, budget.num_selected(scores.shape[-1]), block_size)

    def attend(
        self,
        q_BHND: Tensor,
        k_BGND: Tensor,
        v_BGND: Tensor,
        chosen: BlockSelection | None,
        summaries: bool = True,
        implementation: str | None = None,
    ) -> Tensor:
        """The shard's rows of what `attention.attend` gives for the whole sequence, [B, H, N, D].

        Gradients flow back to the blocks' owners, who add them up in the order of the processes. Raises
        ValueError for what does not fit, and without a selection: dense attention needs the sequence in one
        place.
        """
        if chosen is None:
            raise ValueError("budget: a sequence in shards is read with a budget, by layers that keep to it")
        _check_whole(q_BHND, chosen.block_size)
        fetched = self.fetch(k_BGND, v_BGND, chosen)
        means = self.summaries(k_BGND, v_BGND, chosen.block_size) if summaries else None
        if (implementation or of_device(q_BHND.device)) == "triton":
            from sparse_model.attention import triton_sharded

            return triton_sharded.attend(q_BHND, fetched, means, chosen)
        return attend_fetched(q_BHND, fetched, means, chosen)

    def summaries(self, k_BGND: Tensor, v_BGND: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
        """Mean key and mean value of every block of the sequence, [B, G, J, D] each."""
        mean_k, mean_v = (t.unflatten(2, (-1, block_size)).mean(3) for t in (k_BGND, v_BGND))
        return self.gather(mean_k, dim=2), self.gather(mean_v, dim=2)

    def fetch(self, k_BGND: Tensor, v_BGND: Tensor, chosen: BlockSelection) -> Fetched:
        """Ask the owners for the blocks that the shard's query blocks read, and answer the others."""
        groups, size, num_own = k_BGND.shape[1], chosen.block_size, chosen.num_blocks
        wanted_BGWQ = self._wanted(chosen, groups)
        theirs_WBGQ = self._of_mine(wanted_BGWQ)
        sent = [wanted.flatten().nonzero().squeeze(1) for wanted in theirs_WBGQ]
        order = [(owner - self.rank) % self.count for owner in range(self.count)]  # as they are received
        received = [int(count) for count in wanted_BGWQ.sum((0, 1, 3))[order].tolist()]
        place = torch.zeros(wanted_BGWQ.shape, dtype=torch.int64, device=k_BGND.device)
        first = 0
        for nearness, count in zip(order, received, strict=True):
            place[:, :, nearness][wanted_BGWQ[:, :, nearness]] = torch.arange(
                first, first + count, device=place.device
            )
            first += count
        k, v = (
            self._exchange(t.unflatten(2, (num_own, size)).flatten(0, 2).flatten(1), sent, received)
            for t in (k_BGND, v_BGND)
        )
        return Fetched(k, v, place.flatten(2))

    def _wanted(self, chosen: BlockSelection, groups: int) -> Tensor:
        """bool [B, G, W, Q]: blocks that some query block of the shard reads, by owner, the nearest first."""
        batch, rankings, num_own, slots = chosen.indices_BSQK.shape
        used = torch.arange(slots, device=chosen.counts_BSQ.device) < chosen.counts_BSQ.unsqueeze(-1)
        reads_BSJ = torch.zeros(batch, rankings, self.count * num_own, device=used.device)
        reads_BSJ.scatter_add_(2, chosen.indices_BSQK.long().flatten(2), used.flatten(2).float())
        # a ranking serves several heads, and so does a key/value head: whichever is finer decides
        heads = max(groups, rankings)
        reads_BHJ = (reads_BSJ > 0).repeat_interleave(heads // rankings, dim=1)
        return reads_BHJ.unflatten(1, (groups, -1)).any(2).unflatten(2, (self.count, num_own))

    def _of_mine(self, wanted_BGWQ: Tensor) -> list[Tensor]:
        """bool [B, G, Q] a process: which of this process's blocks it wants."""
        asked = [torch.empty_like(wanted_BGWQ, dtype=torch.uint8) for _ in range(self.count)]
        distributed.all_gather(asked, wanted_BGWQ.to(torch.uint8).contiguous(), self.group)
        self.received_bytes += (self.count - 1) * wanted_BGWQ.numel()
        return [asked[other][:, :, (self.rank - other) % self.count] > 0 for other in range(self.count)]

    def _exchange(self, blocks_TX: Tensor, sent: list[Tensor], received: list[int]) -> Tensor:
        """Blocks from all owners, one under the other."""
        foreign = sum(received) - received[self.rank]
        self.received_bytes += foreign * blocks_TX.shape[1] * blocks_TX.element_size()
        return _Exchange.apply(blocks_TX, sent, received, self.group)


class _Gather(torch.autograd.Function):
    """All shards of a tensor, [W, ...] in the order of their processes."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(t) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, t, group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        outgoing = grads[0].contiguous()
        incoming = torch.empty_like(outgoing)
        distributed.all_to_all_single(incoming, outgoing, group=ctx.group)
        return incoming.sum(0), None


class _Exchange(torch.autograd.Function):
    """Rows of a table for every process against those that they have for this one, one under the other."""

    @staticmethod
    def forward(ctx: Any, table_TX: Tensor, sent: list[Tensor], received: list[int], group: Any) -> Tensor:
        ctx.rows, ctx.received, ctx.sent, ctx.group = len(table_TX), received, sent, group
        incoming = table_TX.new_empty(sum(received), table_TX.shape[1])
        outgoing, sizes = table_TX.index_select(0, torch.cat(sent)), [len(part) for part in sent]
        distributed.all_to_all_single(incoming, outgoing, received, sizes, group)
        return incoming

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        outgoing, sizes = grads[0].contiguous(), [len(part) for part in ctx.sent]
        incoming = outgoing.new_empty(sum(sizes), outgoing.shape[1])
        distributed.all_to_all_single(incoming, outgoing, sizes, ctx.received, ctx.group)
        # one process after the other: a row occurs once in each, so that no order is left to chance
        total = outgoing.new_zeros(ctx.rows, outgoing.shape[1])
        for rows, part in zip(ctx.sent, incoming.split(sizes), strict=True):
            total.index_add_(0, rows, part)
        return total, None, None, None


def attend_fetched(
    q_BHND: Tensor, fetched: Fetched, means: tuple[Tensor, Tensor] | None, chosen: BlockSelection
) -> Tensor:
    """Portable, differentiable: gathers the blocks read, chunk by chunk of query blocks."""
    heads, channels = q_BHND.shape[1], q_BHND.shape[-1]
    q = q_BHND.unflatten(2, (chosen.num_blocks, chosen.block_size))
    slots = chosen.indices_BSQK.shape[-1]
    chunk = max(1, _CHUNK_ELEMENTS // (q.shape[0] * heads * slots * chosen.block_size * channels))
    out = []
    for first in range(0, chosen.num_blocks, chunk):
        rows = slice(first, first + chunk)
        lists = chosen.indices_BSQK[:, :, rows], chosen.counts_BSQ[:, :, rows]
        part = BlockSelection(*lists, chosen.block_size)
        keys, values, bias = _listed(fetched, part, heads, channels, q.dtype)
        if means is not None:
            keys, values, bias = _with_summaries(keys, values, bias, means, part)
        out.append(cpu.softmax_read(q[:, :, rows], keys, values, bias))
    return torch.cat(out, dim=2).flatten(2, 3)


def _listed(
    fetched: Fetched, part: BlockSelection, heads: int, channels: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [B, H, C, K * R, D] of the blocks on the lists, and their bias [B, H, C, 1, K * R]."""
    share = heads // part.indices_BSQK.shape[1]
    index_BHCK = part.indices_BSQK.long().repeat_interleave(share, dim=1)
    place_BHJ = fetched.place_BGJ.repeat_interleave(heads // fetched.place_BGJ.shape[1], dim=1)
    place = place_BHJ.gather(2, index_BHCK.flatten(2)).view_as(index_BHCK)
    keys, values = (
        embedding(place, t).unflatten(-1, (part.block_size, channels)).flatten(3, 4)
        for t in (fetched.k_TX, fetched.v_TX)
    )
    slots = torch.arange(index_BHCK.shape[-1], device=place.device)
    open_ = (slots < part.counts_BSQ.unsqueeze(-1)).repeat_interleave(part.block_size, dim=-1)
    bias = torch.zeros(open_.shape, dtype=dtype, device=place.device).masked_fill(~open_, -torch.inf)
    return keys, values, bias.repeat_interleave(share, dim=1).unsqueeze(3)


def _with_summaries(
    keys: Tensor, values: Tensor, bias: Tensor, means: tuple[Tensor, Tensor], part: BlockSelection
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one more key and value for each block of the sequence that is not on the list."""
    heads, num_rows = keys.shape[1:3]
    more = [
        t.repeat_interleave(heads // t.shape[1], dim=1).unsqueeze(2).expand(-1, -1, num_rows, -1, -1)
        for t in means
    ]
    read_BSCJ = part.read_mask(means[0].shape[2])
    share = heads // read_BSCJ.shape[1]
    log_size = torch.full(read_BSCJ.shape, float(part.block_size), dtype=bias.dtype, device=bias.device).log()
    unread = log_size.masked_fill(read_BSCJ, -torch.inf).repeat_interleave(share, dim=1).unsqueeze(3)
    return torch.cat([keys, more[0]], 3), torch.cat([values, more[1]], 3), torch.cat([bias, unread], -1)


def _check_whole(t_BHND: Tensor, block_size: int) -> None:
    if t_BHND.shape[2] % block_size:
        raise ValueError(f"shard: {t_BHND.shape[2]} steps are not whole blocks of {block_size}")
