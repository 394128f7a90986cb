"""The GPU path against the float64 reference; the tolerance is the error of eager low precision."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparse_model.attention import BlockSelection, SparseAttention, attend, block_scores, select, selection
from sparse_model.attention.sharded import attend_fetched
from sparse_model.config import Budget
from tests.sparse_model.attention_cases import (
    Shape,
    lengths_of,
    selection_of,
    shard_gradients,
    shard_of,
    tensors_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and none is here"),
]

SHAPES = [
    Shape(1, 2, 2, 2, steps=1024, channels=64, block_size=128, selected=3),
    Shape(2, 4, 2, 2, steps=777, channels=64, block_size=64, selected=4, causal=True),
    Shape(2, 4, 1, 2, steps=900, channels=128, block_size=128, selected=2, seed=1),
    Shape(2, 2, 2, 1, steps=515, channels=32, block_size=32, selected=5, lengths=(515, 130)),
    Shape(1, 3, 3, 3, steps=640, channels=96, block_size=64, selected=3, causal=True, seed=2),
    Shape(3, 2, 1, 1, steps=400, channels=64, block_size=128, selected=2, causal=True, lengths=(400, 0, 129)),
    Shape(1, 2, 2, 1, steps=1, channels=64, block_size=64, selected=1),
    Shape(1, 2, 2, 1, steps=129, channels=128, block_size=128, selected=2, seed=3),
]


def run(shape: Shape, implementation: str, dtype: torch.dtype, summaries: bool) -> tuple[Tensor, ...]:
    """Output and gradients to q, k, v; all from the same low-precision inputs."""
    q, k, v = [t.to(dtype).requires_grad_() for t in tensors_of(shape, torch.bfloat16, "cuda")]
    out = attend(
        q, k, v, selection_of(shape, "cuda"), causal=shape.causal, lengths_B=lengths_of(shape, "cuda"),
        summaries=summaries, implementation=implementation,
    )  # fmt: skip
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).bfloat16().to("cuda", dtype)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))


def error(got: Tensor, right: Tensor) -> float:
    """Relative to the right result, or to 1e-3 per element where that is (nearly) zero."""
    return float((got.double() - right).norm() / right.norm().clamp_min(1e-3 * right.numel() ** 0.5))


@pytest.mark.parametrize("summaries", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_as_good_as_eager_low_precision(shape: Shape, summaries: bool) -> None:
    right = run(shape, "reference", torch.float64, summaries)
    eager = run(shape, "reference", torch.bfloat16, summaries)
    fast = run(shape, "triton", torch.bfloat16, summaries)
    for name, got, low, exact in zip(("out", "dq", "dk", "dv"), fast, eager, right, strict=True):
        assert got.isfinite().all(), name
        assert error(got, exact) <= 1.5 * error(low, exact) + 1e-3, name


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_float32_is_exact_to_float32(shape: Shape) -> None:
    right = run(shape, "reference", torch.float64, True)
    fast = run(shape, "triton", torch.float32, True)
    assert max(error(got, exact) for got, exact in zip(fast, right, strict=True)) < 1e-5


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2]], ids=str)
def test_every_element_is_written_and_repeated_runs_are_equal_bit_by_bit(shape: Shape) -> None:
    """Freed memory is filled with NaN first, so an element that no kernel wrote would show."""
    first = run(shape, "triton", torch.bfloat16, True)
    for _ in range(20):
        poison = [torch.full((1 << 22,), torch.nan, device="cuda") for _ in range(8)]
        del poison
        again = run(shape, "triton", torch.bfloat16, True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("memory", ["heads first", "steps first", "packed"])
def test_any_memory_order_gives_the_same(memory: str) -> None:
    shape = SHAPES[1]
    q, k, v = tensors_of(shape, torch.bfloat16, "cuda")
    expected = attend(q, k, v, selection_of(shape, "cuda"), causal=True, implementation="triton")
    if memory == "steps first":
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    if memory == "packed":
        k, v = torch.stack([k.transpose(1, 2), v.transpose(1, 2)], dim=2).permute(2, 0, 3, 1, 4).unbind()
    got = attend(q, k, v, selection_of(shape, "cuda"), causal=True, implementation="triton")
    assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selection_on_the_gpu_is_the_selection_of_the_cpu(shape: Shape) -> None:
    from sparse_model.attention import triton as gpu

    blocks, lengths = -(-shape.steps // shape.block_size), lengths_of(shape)
    generator = torch.Generator().manual_seed(shape.seed)
    scores = torch.randn(shape.batch, shape.rankings, blocks, blocks, generator=generator)
    wanted = min(shape.selected, blocks)
    right = selection.select_blocks(scores, wanted, shape.block_size, shape.causal, lengths)
    got = gpu.select_blocks(scores.cuda(), wanted, shape.block_size, shape.causal, lengths_of(shape, "cuda"))
    assert torch.equal(got.counts_BSQ.cpu().long(), right.counts_BSQ)
    as_int64 = BlockSelection(got.indices_BSQK.cpu().long(), right.counts_BSQ, shape.block_size)
    assert torch.equal(as_int64.read_mask(), right.read_mask())


@pytest.mark.parametrize("channels", [8, 12, 16, 32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_on_the_gpu_are_the_scores_of_the_cpu(shape: Shape, channels: int) -> None:
    from sparse_model.attention import triton as gpu

    generator = torch.Generator().manual_seed(shape.seed)
    size = 2, shape.batch, shape.rankings, shape.steps, channels
    sq, sk = torch.randn(size, generator=generator).half().float()
    right = block_scores(sq, sk, shape.block_size, shape.causal, lengths_of(shape))
    got = gpu.block_scores(
        sq.cuda(), sk.cuda(), shape.block_size, shape.causal, lengths_of(shape, "cuda")
    ).cpu()
    finite = right.isfinite()
    assert torch.equal(finite, got.isfinite())
    torch.testing.assert_close(got[finite], right[finite], rtol=0, atol=2e-2)  # float16 holds 2^-8 at 4


def test_reading_everything_is_dense_attention() -> None:
    q, k, v = torch.randn(3, 1, 4, 1000, 64, device="cuda", dtype=torch.bfloat16).unbind()
    everything = selection.select_blocks(torch.zeros(1, 1, 8, 8, device="cuda"), 8, 128)
    dense = scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert error(attend(q, k, v, everything, implementation="triton"), dense) < 5e-3


def test_it_runs_inside_torch_compile() -> None:
    shape = SHAPES[0]
    q, k, v = tensors_of(shape, torch.bfloat16, "cuda")
    chosen = selection_of(shape, "cuda")

    def through(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q * 1.0, k, v, chosen, implementation="triton") * 2.0

    compiled = torch.compile(through, fullgraph=True)(q, k, v)
    torch.testing.assert_close(compiled, through(q, k, v))


def test_the_whole_operation_compiles_in_one_graph_with_its_gradients() -> None:
    module = SparseAttention(128, implementation="triton")
    compiled = torch.compile(module, fullgraph=True)
    q, k, v = torch.randn(3, 1, 4, 1500, 64, device="cuda", dtype=torch.bfloat16).unbind()
    sq, sk = torch.randn(2, 1, 2, 1500, 16, device="cuda", dtype=torch.bfloat16).unbind()
    leaves = [t.requires_grad_() for t in (q, k, v)]
    results = []
    for run in (module, compiled):
        out = run(*leaves, sq, sk, Budget(0.25))
        results.append((out, *torch.autograd.grad(out.float().square().sum(), leaves)))
    for got, right in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, right)


def test_it_is_exported_as_an_operator_and_computes_the_same() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, sq: Tensor, sk: Tensor) -> Tensor:
            return SparseAttention(128, implementation="triton")(q, k, v, sq, sk, Budget(0.25))

    q, k, v = torch.randn(3, 1, 2, 700, 64, device="cuda", dtype=torch.bfloat16).unbind()
    sq, sk = torch.randn(2, 1, 1, 700, 16, device="cuda", dtype=torch.bfloat16).unbind()
    exported = torch.export.export(Fixed(), (q, k, v, sq, sk))
    assert "dankai.block_sparse_attention" in str(exported.graph)
    assert torch.equal(exported.module()(q, k, v, sq, sk), Fixed()(q, k, v, sq, sk))


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_top_p_on_the_gpu_is_top_p_of_the_cpu(shape: Shape) -> None:
    from sparse_model.attention import triton as gpu

    blocks = -(-shape.steps // shape.block_size)
    generator = torch.Generator().manual_seed(shape.seed)
    scores = torch.randn(shape.batch, shape.rankings, blocks, blocks, generator=generator) * 3
    wanted, size = min(shape.selected, blocks), shape.block_size
    right = selection.select_blocks(scores, wanted, size, shape.causal, lengths_of(shape), 0.7)
    got = gpu.select_blocks(scores.cuda(), wanted, size, shape.causal, lengths_of(shape, "cuda"), 0.7)
    assert torch.equal(got.counts_BSQ.cpu().long(), right.counts_BSQ)


def test_a_captured_training_step_replays_to_the_same_bits() -> None:
    """Nothing in it waits for the host, so forward, selection and backward fit one CUDA graph."""
    q, k, v, grad = torch.randn(4, 1, 4, 2048, 64, device="cuda", dtype=torch.bfloat16).unbind()
    sq, sk = torch.randn(2, 1, 1, 2048, 16, device="cuda", dtype=torch.bfloat16).unbind()
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            attend(leaves[0], leaves[1], leaves[2], select(sq, sk, 4, 128)), leaves, grad
        )

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        eager = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, eager, strict=True))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("block_size", [64, 128])
def test_a_shard_gives_its_rows_of_the_whole(rank: int, block_size: int) -> None:
    """The kernels are the same, and so are the sums of a row but for the order of its blocks."""
    from sparse_model.attention import triton_sharded

    shape = Shape(2, 4, 2, 2, steps=9 * block_size, channels=64, block_size=block_size, selected=4)
    q, fetched, means, mine = shard_of(shape, rank, 3, torch.bfloat16, "cuda")
    got = triton_sharded.attend(q, fetched, means, mine).float()
    whole = attend(*tensors_of(shape, torch.bfloat16, "cuda"), selection_of(shape, "cuda")).float()
    torch.testing.assert_close(got, whole.chunk(3, dim=2)[rank], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("summaries", [True, False])
@pytest.mark.parametrize("block_size", [64, 128])
def test_a_shard_gives_gradients_to_queries_blocks_and_means(block_size: int, summaries: bool) -> None:
    """As the portable path in float32, from the same bf16 inputs; and twice the same."""
    from sparse_model.attention import triton_sharded

    shape = Shape(2, 4, 2, 2, steps=9 * block_size, channels=64, block_size=block_size, selected=4)
    ways = [
        shard_gradients(work, shape, 1, 3, dtype, "cuda", summaries, drawn=torch.bfloat16)
        for work, dtype in (
            (triton_sharded.attend, torch.bfloat16),
            (triton_sharded.attend, torch.bfloat16),
            (attend_fetched, torch.float32),
        )
    ]
    for ours, again, right in zip(*ways, strict=True):
        assert torch.equal(ours, again)
        assert float((ours.float() - right).norm()) < 1e-2 * float(right.norm())
