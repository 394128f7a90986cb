"""The fast path says what the reference says, for outputs and gradients; bad input is named."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparse_model.attention import BlockSelection, attend, block_scores, select_blocks, sparse_attention
from sparse_model.config import Budget
from tests.sparse_model.attention_cases import Shape, lengths_of, selection_of, tensors_of


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    groups, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads = groups * per_group
    batch, steps = draw(st.integers(1, 2)), draw(st.integers(1, 70))
    lengths = st.tuples(*[st.integers(0, steps)] * batch)
    return Shape(
        batch=batch,
        heads=heads,
        groups=groups,
        rankings=draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])),
        steps=steps,
        channels=draw(st.sampled_from([2, 4, 8])),
        block_size=draw(st.sampled_from([1, 3, 8, 16])),
        selected=draw(st.integers(1, 6)),
        causal=draw(st.booleans()),
        lengths=draw(st.none() | lengths),
        seed=draw(st.integers(0, 1000)),
    )


def run(shape: Shape, implementation: str, summaries: bool) -> tuple[Tensor, ...]:
    """Output and the gradients to q, k and v for one fixed random output gradient, in float64."""
    q, k, v = [t.requires_grad_() for t in tensors_of(shape, torch.float64)]
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
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))


@settings(max_examples=60, deadline=None)
@given(shapes(), st.booleans())
def test_the_cpu_path_computes_the_reference_and_its_gradients(shape: Shape, summaries: bool) -> None:
    names = ("out", "dq", "dk", "dv")
    for name, fast, right in zip(
        names, run(shape, "cpu", summaries), run(shape, "reference", summaries), strict=True
    ):
        torch.testing.assert_close(fast, right, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("causal", [False, True])
def test_inference_on_several_threads_says_the_same_and_leaves_their_number_alone(causal: bool) -> None:
    before, steps = torch.get_num_threads(), 5000
    q, k, v = torch.randn(3, 1, 4, steps, 16, generator=torch.Generator().manual_seed(0))
    sq, sk = q[:, :1, :, :8], k[:, :1, :, :8]
    told = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                selection = select_blocks(block_scores(sq, sk, 64, causal), 20, 64, causal)
                told.append(attend(q, k, v, selection, causal=causal, implementation="cpu"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*told)


@settings(max_examples=30, deadline=None)
@given(shapes())
def test_reading_every_block_is_dense_attention(shape: Shape) -> None:
    shape = dataclasses.replace(shape, lengths=None)
    q, k, v = tensors_of(shape, torch.float64)
    blocks = -(-shape.steps // shape.block_size)
    everything = select_blocks(
        torch.zeros(shape.batch, 1, blocks, blocks), blocks, shape.block_size, shape.causal
    )
    dense = scaled_dot_product_attention(q, k, v, is_causal=shape.causal, enable_gqa=True)
    sparse = attend(q, k, v, everything, causal=shape.causal, implementation="cpu")
    torch.testing.assert_close(sparse, dense, rtol=1e-9, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(shapes(), st.integers(0, 69))
def test_padding_and_the_future_change_nothing(shape: Shape, at: int) -> None:
    shape = dataclasses.replace(shape, causal=True, lengths=None)
    at = at % shape.steps
    q, k, v = tensors_of(shape, torch.float64)
    selection = selection_of(shape)
    before = attend(q, k, v, selection, causal=True, implementation="cpu")
    k[:, :, at:], v[:, :, at:] = 1e3, -1e3
    after = attend(q, k, v, selection, causal=True, implementation="cpu")
    torch.testing.assert_close(after[:, :, :at], before[:, :, :at], rtol=0, atol=0)


def brute_force_scores(sq: Tensor, sk: Tensor, size: int, causal: bool) -> Tensor:
    steps, channels = sq.shape[-2:]
    logits = sq @ sk.mT * channels**-0.5
    if causal:
        logits = logits.masked_fill(torch.ones(steps, steps).triu(1).bool(), -torch.inf)
    maxima = torch.stack([part.amax(-1) for part in logits.split(size, -1)], -1)
    relative = maxima - maxima.logsumexp(-1, keepdim=True)
    return torch.stack([part.amax(-2) for part in relative.split(size, -2)], -2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.sampled_from([1, 4, 16]), st.booleans(), st.integers(0, 1000))
def test_block_scores_are_the_best_step_pair_of_each_tile(
    steps: int, size: int, causal: bool, seed: int
) -> None:
    sq, sk = torch.randn(
        2, 1, 2, steps, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    expected = brute_force_scores(sq, sk, size, causal)
    torch.testing.assert_close(block_scores(sq, sk, size, causal), expected)


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_selected_blocks_are_ascending_permitted_and_hold_the_own_block(shape: Shape) -> None:
    blocks = -(-shape.steps // shape.block_size)
    scores = torch.randn(shape.batch, 2, blocks, blocks, generator=torch.Generator().manual_seed(shape.seed))
    chosen = select_blocks(
        scores, min(shape.selected, blocks), shape.block_size, shape.causal, lengths_of(shape)
    )
    for batch, head, row in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape[:3])).tolist():
        count = int(chosen.counts_BSQ[batch, head, row])
        got = chosen.indices_BSQK[batch, head, row, :count].tolist()
        length = shape.steps if shape.lengths is None else shape.lengths[batch]
        allowed = [
            j for j in range(blocks) if j * shape.block_size < length and (j <= row or not shape.causal)
        ]
        assert got == sorted(set(got))
        assert set(got) <= set(allowed)
        assert count == min(min(shape.selected, blocks), len(allowed))
        assert row in got or row not in allowed
        kept = [float(scores[batch, head, row, j]) for j in got if j != row]
        left = [float(scores[batch, head, row, j]) for j in allowed if j not in got]
        assert not kept or not left or min(kept) >= max(left)


def good() -> dict[str, Tensor | BlockSelection]:
    shape = Shape(batch=2, heads=4, groups=2, rankings=2, steps=20, channels=4, block_size=8, selected=2)
    q, k, v = tensors_of(shape, torch.float32)
    return {"q_BHND": q, "k_BGND": k, "v_BGND": v, "selection": selection_of(shape)}


@pytest.mark.parametrize(
    ("argument", "value", "named"),
    [
        ("q_BHND", torch.zeros(4, 20, 4), "^q:"),
        ("k_BGND", torch.zeros(2, 2, 19, 4), "^k:"),
        ("k_BGND", torch.zeros(2, 3, 20, 4), "^k:"),
        ("v_BGND", torch.zeros(2, 2, 20, 4, dtype=torch.float64), "^v:"),
        ("v_BGND", torch.zeros(2, 2, 20, 4, device="meta"), "^v:"),
        ("lengths_B", torch.tensor([3]), "^lengths:"),
        ("implementation", "quick", "^implementation:"),
    ],
)
def test_bad_attention_input_is_named(argument: str, value: object, named: str) -> None:
    arguments = good() | {argument: value}
    with pytest.raises(ValueError, match=named):
        attend(**arguments)  # pyright: ignore[reportArgumentType]


def test_a_selection_of_another_length_is_refused() -> None:
    arguments = good()
    indices = torch.zeros(2, 2, 5, 2, dtype=torch.int64)
    arguments["selection"] = BlockSelection(indices, torch.ones(2, 2, 5, dtype=torch.int64), 8)
    with pytest.raises(ValueError, match=r"^selection:"):
        attend(**arguments)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("budget", [0, 4])
def test_a_budget_of_no_blocks_or_more_than_there_are_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=r"^num_selected:"):
        select_blocks(torch.zeros(1, 1, 3, 3), budget, 8)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^scores:"):
        select_blocks(torch.full((1, 1, 3, 3), torch.nan), 1, 8)


def test_top_p_reads_fewer_blocks_where_fewer_hold_the_mass() -> None:
    peaked, flat = torch.tensor([9.0, 0.0, 0.0, 0.0]), torch.zeros(4)
    scores = torch.stack([peaked, flat, flat, flat]).view(1, 1, 4, 4)
    counts = select_blocks(scores, 3, 8, top_p=0.9).counts_BSQ.flatten().tolist()
    assert counts == [1, 3, 3, 3]


@pytest.mark.parametrize("top_p", [0.0, 1.5])
def test_top_p_outside_its_range_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match=r"^top_p:"):
        select_blocks(torch.zeros(1, 1, 3, 3), 1, 8, top_p=top_p)


def test_auto_reads_short_sequences_densely_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v = tensors_of(Shape(1, 2, 2, 1, steps=40, channels=4, block_size=8, selected=1), torch.float32)
    sq, sk = torch.randn(2, 1, 1, 40, 4)
    with caplog.at_level("INFO"):
        out = sparse_attention(q, k, v, sq, sk, Budget(0.25), block_size=8)
    torch.testing.assert_close(out, scaled_dot_product_attention(q, k, v))
    assert "dense for 40 steps" in caplog.text


def test_a_named_implementation_selects_and_attends() -> None:
    q, k, v = tensors_of(Shape(1, 2, 2, 1, steps=40, channels=4, block_size=8, selected=1), torch.float32)
    sq, sk = torch.randn(2, 1, 1, 40, 4)
    out = sparse_attention(q, k, v, sq, sk, Budget(0.25), block_size=8, implementation="cpu")
    right = sparse_attention(q, k, v, sq, sk, Budget(0.25), block_size=8, implementation="reference")
    torch.testing.assert_close(out, right)
    assert not torch.allclose(out, scaled_dot_product_attention(q, k, v), atol=1e-3)
