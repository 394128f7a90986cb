"""A causal model sees no later step, learns its selector from what rows may see, and explains itself so."""

import pytest
import torch

from sparse_model.config import Budget, ModelConfig
from sparse_model.explanation import audit, explain
from sparse_model.losses import Probes, selector_target
from sparse_model.model import SparseEncoder, Training

CONFIG = ModelConfig(num_numeric=3, cardinalities=(4,), num_outputs=1, width=32, block_size=8, causal=True)
STEPS, SEEN = 100, 56
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> SparseEncoder:
    torch.manual_seed(0)
    model = SparseEncoder(CONFIG).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    numeric = torch.randn(1, STEPS, 3, generator=torch.Generator().manual_seed(1))
    return numeric, torch.ones_like(numeric), torch.arange(STEPS)[None, :, None] % 4


@pytest.mark.parametrize("budget", [None, Budget(0.3), Budget(1.0)])
def test_what_comes_later_changes_nothing(
    model: SparseEncoder, inputs: Inputs, budget: Budget | None
) -> None:
    later = inputs[0].clone()
    later[:, SEEN:] = 9.0
    with torch.inference_mode():
        before, after = model(*inputs, budget), model(later, *inputs[1:], budget)
    torch.testing.assert_close(before[:, :SEEN], after[:, :SEEN], rtol=0, atol=0)
    assert not torch.allclose(before[:, SEEN:], after[:, SEEN:])


def test_training_and_inference_agree_and_everything_read_is_dense(
    model: SparseEncoder, inputs: Inputs
) -> None:
    trained = model.predict(*inputs, Budget(0.3)).outputs_BNO
    with torch.inference_mode():
        torch.testing.assert_close(model(*inputs, Budget(0.3)), trained.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(*inputs, Budget(1.0)), model(*inputs), rtol=1e-5, atol=1e-5)


def test_the_selector_is_taught_within_what_its_rows_may_see(model: SparseEncoder, inputs: Inputs) -> None:
    probes = Probes(torch.tensor([[3, 50, 99]]), num_peaked=4)
    for terms in model.predict(*inputs, Budget(0.3), training=Training(probes)).selector:
        assert 0 <= float(terms.divergence.detach()) < 1
        assert float(terms.entropy.detach()) > 0
    missed = torch.zeros(1, 2, 2, 13)
    target = selector_target(missed, 1, torch.tensor([[3, 50]]), 8)[0, 0]
    torch.testing.assert_close(target.sum(-1), torch.ones(2))
    assert target[0].tolist() == [1.0] + [0.0] * 12
    assert (target[1] > 0).sum() == 7


def test_an_explanation_points_backwards_only(model: SparseEncoder, inputs: Inputs) -> None:
    rows = torch.tensor([3, 50])
    reading = explain(model, *inputs, Budget(0.3), rows)
    mass = reading.steps_BLHPN.sum(-1) + reading.summaries_BLHPJ.sum(-1)
    torch.testing.assert_close(mass, torch.ones_like(mass))
    for place, row in enumerate(rows.tolist()):
        assert float(reading.steps_BLHPN[..., place, row + 1 :].abs().max()) == 0
        assert float(reading.summaries_BLHPJ[..., place, row // 8 :].abs().max()) == 0
    audited = audit(model, *inputs, Budget(0.3), rows)
    assert float(audited.unread[..., 0].abs().max()) < 1e-6  # the first block reads itself: nothing is unread
    assert float((audited.missed - audited.unread).max()) < 1e-6


def test_shards_refuse_it_in_one_line(model: SparseEncoder) -> None:
    with pytest.raises(ValueError, match="causal: sequences spread over processes"):
        model.spread(object())  # type: ignore[arg-type]
