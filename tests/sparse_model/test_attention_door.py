"""What a user of `sparse_model.attention` relies on besides numbers: module, compilers, gradients, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_model.attention import SparseAttention, attend, select, select_blocks, sparse_attention
from sparse_model.config import Budget
from tests.sparse_model.attention_cases import Shape, lengths_of, selection_of, tensors_of

SHAPE = Shape(batch=2, heads=4, groups=2, rankings=2, steps=50, channels=8, block_size=8, selected=3)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, and selector queries and keys, float32."""
    q, k, v = tensors_of(SHAPE, torch.float32)
    sq, sk = torch.randn(2, 2, 2, 50, 4, generator=torch.Generator().manual_seed(5))
    return q, k, v, sq, sk


def test_the_module_is_the_function_with_its_settings() -> None:
    module = SparseAttention(8, causal=True, implementation="cpu")
    lengths = torch.tensor([50, 17])
    right = sparse_attention(
        *inputs(), Budget(0.25), block_size=8, causal=True, lengths_B=lengths, implementation="cpu"
    )
    assert torch.equal(module(*inputs(), Budget(0.25), lengths), right)
    assert not list(module.parameters())


class Fixed(nn.Module):
    """The operation at one budget, as a model that is exported holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SparseAttention(8, implementation="cpu")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, sq: Tensor, sk: Tensor) -> Tensor:
        return self.attention(q, k, v, sq, sk, Budget(0.25))


def test_it_is_exported_and_computes_the_same() -> None:
    exported = torch.export.export(Fixed(), inputs())
    torch.testing.assert_close(exported.module()(*inputs()), Fixed()(*inputs()))


def test_it_compiles_in_one_graph_with_its_gradients() -> None:
    """The whole operation, selection included: a break in the graph would raise."""
    model = Fixed()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    results = []
    for run in (model, compiled):
        q, k, v, sq, sk = inputs()
        leaves = [t.requires_grad_() for t in (q, k, v)]
        out = run(*leaves, sq, sk)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for got, right in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, right)


def test_no_gradient_reaches_the_selector_through_the_choice() -> None:
    q, k, v, sq, sk = inputs()
    for t in (q, k, v, sq, sk):
        t.requires_grad_()
    out = sparse_attention(q, k, v, sq, sk, Budget(0.25), block_size=8, implementation="cpu")
    out.sum().backward()
    assert all(t.grad is not None for t in (q, k, v))
    assert sq.grad is None
    assert sk.grad is None


def test_unread_blocks_give_gradients_through_their_summaries() -> None:
    q, k, v = [t.requires_grad_() for t in tensors_of(SHAPE, torch.float64)]
    own_only = select_blocks(torch.zeros(2, 1, 7, 7), 1, 8)
    attend(q, k, v, own_only, implementation="cpu")[:, :, :8].sum().backward()
    assert k.grad is not None
    assert bool((k.grad[:, :, 8:] != 0).any())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 1000))
def test_top_p_reads_the_fewest_best_blocks_that_hold_the_share(
    blocks: int, cap: int, top_p: float, causal: bool, seed: int
) -> None:
    cap = min(cap, blocks)
    scores = torch.randn(1, 1, blocks, blocks, generator=torch.Generator().manual_seed(seed)) * 3
    whole = select_blocks(scores, cap, 4, causal)
    chosen = select_blocks(scores, cap, 4, causal, top_p=top_p)
    for row in range(blocks):
        seen = row + 1 if causal else blocks
        share = scores[0, 0, row, :seen].softmax(-1)
        count = int(chosen.counts_BSQ[0, 0, row])
        read = chosen.indices_BSQK[0, 0, row, :count].tolist()
        assert 1 <= count <= int(whole.counts_BSQ[0, 0, row])
        assert row in read
        others = sorted((float(share[j]) for j in read if j != row), reverse=True)
        held_by_all_but_the_last = float(share[row]) + sum(others[:-1])
        assert count == 1 or held_by_all_but_the_last < top_p + 1e-5
        assert count == int(whole.counts_BSQ[0, 0, row]) or float(share[row]) + sum(others) >= top_p - 1e-5


def test_a_row_without_blocks_gives_zeros_and_finite_gradients() -> None:
    shape = Shape(2, 2, 1, 1, steps=20, channels=4, block_size=8, selected=1, lengths=(20, 0))
    q, k, v = [t.requires_grad_() for t in tensors_of(shape, torch.float64)]
    out = attend(
        q, k, v, selection_of(shape), lengths_B=lengths_of(shape), summaries=False, implementation="cpu"
    )
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert bool((out[1] == 0).all())
    assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize(
    ("position", "value", "named"),
    [
        (3, torch.zeros(2, 50, 4), "^sq:"),
        (3, torch.zeros(2, 2, 49, 4), "^sk:"),
        (4, torch.zeros(2, 1, 50, 4), "^sk:"),
        (5, 0.25, "^budget:"),
    ],
)
def test_bad_selector_input_is_named(position: int, value: object, named: str) -> None:
    arguments: list[object] = [*inputs(), Budget(0.25)]
    arguments[position] = value
    with pytest.raises(ValueError, match=named):
        sparse_attention(*arguments, block_size=8, implementation="cpu")  # pyright: ignore[reportArgumentType]


def test_rankings_that_do_not_divide_the_heads_are_refused() -> None:
    q, k, v, sq, _ = inputs()
    three = sq[:, :1].expand(-1, 3, -1, -1)
    with pytest.raises(ValueError, match=r"^sq:"):
        sparse_attention(q, k, v, three, three, Budget(0.25), block_size=8, implementation="cpu")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"block_size": 0}, "^block_size:"), ({"block_size": 8, "implementation": "quick"}, "^implementation:")],
)
def test_bad_settings_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sparse_attention(*inputs(), Budget(0.25), **options)  # pyright: ignore[reportArgumentType]


def test_selector_keys_of_another_length_are_refused_by_select() -> None:
    _, _, _, sq, sk = inputs()
    with pytest.raises(ValueError, match=r"^sk:"):
        select(sq, sk[:, :, :40], 2, 8)


def test_select_refuses_an_implementation_that_it_does_not_know() -> None:
    _, _, _, sq, sk = inputs()
    with pytest.raises(ValueError, match=r"^implementation:"):
        select(sq, sk, 2, 8, implementation="quick")


def test_a_named_gpu_implementation_raises_where_it_cannot_run() -> None:
    """It never computes by another one in silence."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises((ValueError, ModuleNotFoundError), match="triton"):
        sparse_attention(*inputs(), Budget(0.25), block_size=16, implementation="triton")
