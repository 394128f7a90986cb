"""The encoder on a GPU: fused parts, in-place inference, recomputation and recording against plain forms."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from sparse_model import layers
from sparse_model.config import Budget, ModelConfig
from sparse_model.losses import Probes
from sparse_model.model import SparseEncoder, Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and none is here"),
]

BUDGETS = [None, Budget(0.25)]


def plain_rotary(x: Tensor) -> Tensor:
    return torch.cat(layers._turned(x, 1.0), dim=-1)


def plain_gate(hidden: Tensor) -> Tensor:
    gate, value = hidden.chunk(2, dim=-1)
    return silu(gate) * value


def model_of(groups: int = 8, dtype: torch.dtype = torch.bfloat16, num_layers: int = 2) -> SparseEncoder:
    torch.manual_seed(0)
    config = ModelConfig(
        num_numeric=4, cardinalities=(), num_outputs=1, width=512, num_layers=num_layers, num_heads=8,
        num_kv_heads=groups, ffn_width=1408, block_size=128, rotary_share=0.75,
    )  # fmt: skip
    model = SparseEncoder(config)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    return model.to("cuda", dtype)


def inputs_of(
    steps: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    numeric = torch.randn(1, steps, 4, generator=generator).to("cuda", dtype)
    categorical = torch.zeros(1, steps, 0, dtype=torch.int64, device="cuda")
    return numeric, torch.ones_like(numeric), categorical


def error(got: Tensor, right: Tensor) -> float:
    return float((got.double() - right.double()).norm() / right.double().norm())


@pytest.mark.parametrize("shape", [(2, 6, 1000, 64), (1, 1, 1_000_000, 16), (3, 5, 77, 24)], ids=str)
def test_the_fused_rotation_is_the_plain_one_also_a_million_steps_out(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device="cuda").transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    grad = torch.randn(shape, device="cuda")
    outputs = [work(x) for work in (layers.rotary, plain_rotary)]
    assert error(*(out.detach() for out in outputs)) < 1e-6
    assert error(*(torch.autograd.grad(out, x, grad)[0] for out in outputs)) < 1e-6


def test_rotating_some_heads_in_place_leaves_the_others_alone() -> None:
    qkv = torch.randn(2, 700, 6, 64, device="cuda", dtype=torch.bfloat16)
    before = qkv.clone()
    layers.rotary_(qkv.transpose(1, 2)[:, :4])
    assert error(qkv[:, :, :4], plain_rotary(before.transpose(1, 2)[:, :4].float()).transpose(1, 2)) < 3e-3
    assert torch.equal(qkv[:, :, 4:], before[:, :, 4:])


def test_the_fused_gate_is_the_plain_one() -> None:
    hidden = torch.randn(3, 50, 2 * 1408, device="cuda", requires_grad=True)
    grad = torch.randn(3, 50, 1408, device="cuda")
    outputs = [work(hidden) for work in (layers._gated, plain_gate)]
    assert error(*(out.detach() for out in outputs)) < 1e-6
    assert error(*(torch.autograd.grad(out, hidden, grad)[0] for out in outputs)) < 1e-6


@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("steps", [20_000, 3000])
def test_in_place_inference_is_as_close_to_float32_as_the_plain_forward(groups: int, steps: int) -> None:
    model, exact = model_of(groups), model_of(groups, torch.float32)
    with torch.no_grad():
        right = exact(*inputs_of(steps, torch.float32), None)
        in_place = model(*inputs_of(steps), None)
    plain = model(*inputs_of(steps), None).detach()
    assert error(in_place, right) <= 1.5 * error(plain, right) + 1e-3


@pytest.mark.parametrize("groups", [8, 2])
def test_sparse_inference_in_parts_is_sparse_inference_at_once(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer: in a second one rounding alone may turn the choice between two blocks."""
    model, inputs = model_of(groups, torch.float32, num_layers=1), inputs_of(5000, torch.float32)
    with torch.no_grad():
        whole = model(*inputs, Budget(0.25))
        monkeypatch.setattr(layers, "_HEAD_ROWS", 1)
        monkeypatch.setitem(layers._FFN_ROWS, "cuda", 777)
        assert error(model(*inputs, Budget(0.25)), whole) < 1e-3


@pytest.mark.parametrize("budget", BUDGETS)
def test_recomputed_gradients_are_as_close_as_a_second_run(budget: Budget | None) -> None:
    """Sparse ones repeat bit by bit; the dense backward of PyTorch does not."""
    request = Training(Probes(torch.arange(0, 4000, 100, device="cuda")[None]), ranking_noise=0.5)

    def gradients(recompute: bool) -> list[Tensor]:
        model = model_of()
        torch.manual_seed(1)
        outputs, terms = model.predict(*inputs_of(4000), budget, training=request, recompute=recompute)
        (outputs.float().square().mean() + sum(term.divergence for term in terms)).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    again = [error(a, b) for a, b in zip(gradients(True), gradients(False), strict=True)]
    assert max(again) == 0.0 if budget else max(again) < 5e-3


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_recorded_pass_answers_new_inputs_as_the_model_does(budget: Budget | None) -> None:
    """Sparse bit by bit; dense may be given another kernel of cuDNN's."""
    from sparse_model.captured import Captured

    model = model_of()
    recorded = Captured(model, *inputs_of(4000), budget)
    with torch.no_grad():
        for seed in (1, 2):
            new = inputs_of(4000, seed=seed)
            assert error(recorded(*new), model(*new, budget)) <= (0.0 if budget else 1e-2)


def test_a_recorded_pass_refuses_another_shape() -> None:
    from sparse_model.captured import Captured

    recorded: Callable[..., Tensor] = Captured(model_of(), *inputs_of(512), None)
    with pytest.raises(ValueError, match="numeric: recorded for"):
        recorded(*inputs_of(256))
