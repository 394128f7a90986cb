"""Run by test_kernels_interpreted.py in a process of its own, with Triton's interpreter switched on."""

import torch

from sparse_model.attention import BlockSelection, attend, selection, triton_launch, triton_sharded
from sparse_model.attention import triton as gpu
from sparse_model.attention.sharded import attend_fetched
from sparse_model.attention.triton_problem import problem_of
from tests.sparse_model.attention_cases import Shape, lengths_of, selection_of, shard_gradients, tensors_of

SHAPES = [
    Shape(1, 2, 1, 1, steps=50, channels=16, block_size=16, selected=2),
    Shape(2, 4, 2, 2, steps=70, channels=24, block_size=16, selected=3, causal=True, lengths=(70, 33)),
    Shape(1, 2, 2, 2, steps=130, channels=32, block_size=32, selected=2, lengths=(100,)),
    Shape(1, 2, 2, 1, steps=1, channels=16, block_size=32, selected=1),
]


def run(shape: Shape, implementation: str, dtype: torch.dtype, summaries: bool) -> list[torch.Tensor]:
    q, k, v = [t.requires_grad_() for t in tensors_of(shape, dtype)]
    out = attend(
        q,
        k,
        v,
        selection_of(shape),
        causal=shape.causal,
        lengths_B=lengths_of(shape),
        summaries=summaries,
        implementation=implementation,
    )
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def check_attention(shape: Shape, summaries: bool) -> None:
    fast = run(shape, "triton", torch.float32, summaries)
    right = run(shape, "reference", torch.float64, summaries)
    for got, exact in zip(fast, right, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5)


def check_selection(shape: Shape) -> None:
    lengths, blocks = lengths_of(shape), -(-shape.steps // shape.block_size)
    generator = torch.Generator().manual_seed(shape.seed)
    size = 2, shape.batch, shape.rankings, shape.steps, 12
    sq, sk = torch.randn(size, generator=generator).half().float()
    right = selection.block_scores(sq, sk, shape.block_size, shape.causal, lengths)
    got = gpu.block_scores(sq, sk, shape.block_size, shape.causal, lengths)
    torch.testing.assert_close(got, right, rtol=0, atol=2e-2)
    scores = torch.randn(right.shape, generator=generator)
    wanted = min(shape.selected, blocks)
    chosen = selection.select_blocks(scores, wanted, shape.block_size, shape.causal, lengths)
    fast = gpu.select_blocks(scores, wanted, shape.block_size, shape.causal, lengths)
    assert torch.equal(fast.counts_BSQ.long(), chosen.counts_BSQ)
    nucleus = selection.select_blocks(scores, wanted, shape.block_size, shape.causal, lengths, top_p=0.6)
    fewer = gpu.select_blocks(scores, wanted, shape.block_size, shape.causal, lengths, top_p=0.6)
    assert torch.equal(fewer.counts_BSQ.long(), nucleus.counts_BSQ)
    mask = BlockSelection(fast.indices_BSQK.long(), chosen.counts_BSQ, shape.block_size).read_mask()
    assert torch.equal(mask, chosen.read_mask())


def check_transposed_lists(shape: Shape) -> None:
    """Every key block's readers, and the key blocks with most readers first."""
    chosen = selection_of(shape)
    q, k, v = tensors_of(shape, torch.float32)
    lists = chosen.indices_BSQK.int(), chosen.counts_BSQ.int()
    p = problem_of(q, k, v, *lists, shape.block_size, shape.causal, lengths_of(shape), True)
    got = triton_launch.transposed_lists(p, triton_launch.lists_of(p, *lists).bits_BSQW)
    lengths = torch.tensor(shape.lengths or [shape.steps] * shape.batch)
    exists_BQ = torch.arange(p.num_blocks) * shape.block_size < lengths[:, None]
    reads = (chosen.read_mask() & exists_BQ[:, None, :, None]).transpose(2, 3).flatten(0, 2)
    for block, row in enumerate(reads):
        start, stop = got.offsets[block : block + 2].tolist()
        assert got.readers[start:stop].tolist() == row.nonzero().flatten().tolist()
    counts = reads.sum(-1).view(-1, p.num_blocks)
    order = got.order.view(-1, p.num_blocks).long()
    assert torch.equal(order.sort(-1).values, torch.arange(p.num_blocks).expand_as(order))
    assert torch.equal(counts.gather(-1, order), counts.sort(-1, descending=True).values)


def check_shard(shape: Shape, rank: int, summaries: bool) -> None:
    """Rows of one shard of three, whose blocks lie anywhere, are rows of the whole."""
    whole = tensors_of(shape, torch.float64)
    right = attend(*whole, selection_of(shape), summaries=summaries, implementation="reference")
    got, exact = (
        shard_gradients(work, shape, rank, 3, dtype, summaries=summaries)
        for work, dtype in ((triton_sharded.attend, torch.float32), (attend_fetched, torch.float64))
    )
    torch.testing.assert_close(got[0].double(), right.chunk(3, dim=2)[rank], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(got, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    generator = torch.Generator().manual_seed(shape.seed)
    sq, sk = torch.randn(2, shape.batch, shape.rankings, shape.steps, 16, generator=generator).half().float()
    sq = sq.chunk(3, dim=2)[rank]
    scores = triton_sharded.block_scores(sq, sk, shape.block_size)
    exact = selection.block_scores(sq, sk, shape.block_size)
    torch.testing.assert_close(scores, exact, rtol=0, atol=2e-2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for shape in SHAPES:
        check_attention(shape, summaries=True)
        check_attention(shape, summaries=False)
        check_selection(shape)
        check_transposed_lists(shape)
    for rank in range(3):
        check_shard(Shape(2, 4, 2, 2, steps=96, channels=16, block_size=16, selected=3), rank, rank != 1)
