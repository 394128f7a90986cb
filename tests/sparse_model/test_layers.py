"""The encoder agrees with itself: in place and in parts as plain, recomputed gradients as kept ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_model import layers
from sparse_model.captured import Captured
from sparse_model.config import Budget, ModelConfig
from sparse_model.losses import Probes
from sparse_model.model import SparseEncoder, Training

BUDGETS = [None, Budget(0.3)]


def model_of(heads: int = 4, groups: int = 2, rankings: int = 2, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    config = ModelConfig(
        num_numeric=3, cardinalities=(5,), num_outputs=2, width=8 * heads, num_heads=heads,
        num_kv_heads=groups, selector_heads=rankings, ffn_width=40, block_size=16, rotary_share=0.5,
    )  # fmt: skip
    model = SparseEncoder(config)
    torch.nn.init.normal_(model.head.weight)
    return model.to(dtype)


def inputs_of(
    steps: int, batch: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(steps)
    numeric = torch.randn(batch, steps, 3, generator=generator).to(dtype)
    return numeric, torch.ones_like(numeric), torch.randint(0, 5, (batch, steps, 1), generator=generator)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One head at a time, and 33 rows of the feed-forward."""
    monkeypatch.setattr(layers, "_HEAD_ROWS", 1)
    monkeypatch.setitem(layers._FFN_ROWS, "cpu", 33)


@settings(max_examples=6, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4, 6]),
    shares=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    head_rows=st.integers(1, 2000),
    steps=st.integers(1, 70),
    padded=st.booleans(),
    budget=st.sampled_from(BUDGETS),
)
def test_inference_in_parts_is_the_plain_forward(
    heads: int, shares: tuple[int, int], head_rows: int, steps: int, padded: bool, budget: Budget | None
) -> None:
    """Also where the heads of a part share key/value heads or rankings, and where they have several."""
    groups, rankings = (heads // share if heads % share == 0 else heads for share in shares)
    model, inputs = model_of(heads, groups, rankings), inputs_of(steps)
    lengths = torch.tensor([steps, max(1, steps // 3)]) if padded else None
    plain = model(*inputs, budget, lengths).detach()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(layers, "_HEAD_ROWS", head_rows)
        patch.setitem(layers._FFN_ROWS, "cpu", 7)
        torch.testing.assert_close(model(*inputs, budget, lengths), plain)


@pytest.mark.usefixtures("small_parts")
def test_inference_leaves_its_inputs_as_they_were() -> None:
    model, inputs = model_of(), inputs_of(50)
    before = [tensor.clone() for tensor in inputs]
    with torch.inference_mode():
        model(*inputs, Budget(0.3))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("budget", BUDGETS)
def test_mixed_precision_inference_agrees_with_the_plain_forward(budget: Budget | None) -> None:
    model, inputs = model_of(dtype=torch.float32), inputs_of(50, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(*inputs, budget).detach()
        with torch.no_grad():
            torch.testing.assert_close(model(*inputs, budget), plain, rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("small_parts")
def test_a_model_that_has_answered_can_still_be_trained() -> None:
    model, inputs = model_of(), inputs_of(50)
    with torch.inference_mode():
        model(*inputs, Budget(0.3))
    model(*inputs, Budget(0.3)).sum().backward()


def gradients(budget: Budget | None, recompute: bool) -> tuple[list[Tensor], int]:
    """Gradients of a training step with noise on the ranking, and the bytes that were kept for them."""
    model, inputs, kept = model_of(), inputs_of(120), {}
    request = Training(Probes(torch.arange(0, 120, 20)[None]), ranking_noise=0.5)

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        torch.manual_seed(1)
        outputs, terms = model.predict(*inputs, budget, training=request, recompute=recompute)
    (outputs.square().mean() + sum(term.divergence for term in terms)).backward()
    return [p.grad for p in model.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("budget", BUDGETS)
def test_recomputed_gradients_are_the_kept_ones_from_a_fraction_of_the_memory(budget: Budget | None) -> None:
    whole, whole_bytes = gradients(budget, recompute=False)
    again, again_bytes = gradients(budget, recompute=True)
    assert len(whole) == len(again) > 10
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert again_bytes < whole_bytes / 3


def test_recording_a_pass_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="numeric: must be on a CUDA device"):
        Captured(model_of(), *inputs_of(10), None)
