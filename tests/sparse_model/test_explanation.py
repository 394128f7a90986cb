"""What an explanation says is what the model did, and what an audit misses is what was not read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_model.attention import attend
from sparse_model.config import Budget, ModelConfig
from sparse_model.explanation import Audit, Reading, audit, explain, selection_recall
from sparse_model.model import SparseEncoder

BLOCK = 4


def encoder(
    num_heads: int = 4, num_kv_heads: int = 2, selector_heads: int = 2, layers: int = 2
) -> SparseEncoder:
    torch.manual_seed(0)
    config = ModelConfig(
        num_numeric=3, cardinalities=(5,), num_outputs=1, width=16, num_layers=layers, ffn_width=16,
        num_heads=num_heads, num_kv_heads=num_kv_heads, selector_heads=selector_heads, selector_dim=4,
        block_size=BLOCK,
    )  # fmt: skip
    model = SparseEncoder(config).double().eval()
    for parameter in model.parameters():  # enough spread for attention that is not flat
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def inputs(num_steps: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(num_steps)
    numeric = torch.randn(batch, num_steps, 3, dtype=torch.float64)
    return numeric, torch.ones_like(numeric), torch.randint(5, (batch, num_steps, 1))


def first_layer(model: SparseEncoder, given_: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Queries, keys, values of the first layer, heads repeated."""
    layer = model.layers[0]
    q, k, v = layer.attention.heads(layer.attention_norm(model.embed(*given_)))  # pyright: ignore
    share = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)


@settings(max_examples=8, deadline=None)
@given(num_steps=st.integers(1, 27), density=st.floats(0.05, 1.0), selector_heads=st.sampled_from([1, 2, 4]))
def test_the_mass_it_tells_is_the_mass_that_made_the_output(
    num_steps: int, density: float, selector_heads: int
) -> None:
    """Steps' masses times values plus summaries' masses times mean values is the attention's own output."""
    model, given_ = encoder(selector_heads=selector_heads, layers=1), inputs(num_steps)
    budget = Budget(density)
    with torch.no_grad():
        reading = explain(model, *given_, budget, torch.arange(num_steps))
        q, k, v = first_layer(model, given_)
        layer = model.layers[0]
        chosen = layer.attention.select(layer.attention_norm(model.embed(*given_)), budget)  # pyright: ignore
    means = torch.stack([part.mean(2) for part in v.split(BLOCK, dim=2)], dim=2)
    told = reading.steps_BLHPN[:, 0] @ v + reading.summaries_BLHPJ[:, 0] @ means
    expected = attend(q, k, v, chosen, implementation="reference")  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(told, expected)
    total = reading.steps_BLHPN.sum(-1) + reading.summaries_BLHPJ.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_steps_of_blocks_that_were_not_read_and_summaries_of_those_that_were_have_no_mass() -> None:
    reading = explain(encoder(), *inputs(22), Budget(0.4), torch.tensor([0, 9, 21]))
    is_read_BLHPN = reading.is_read_BLHPJ.repeat_interleave(BLOCK, -1)[..., :22]
    assert not reading.steps_BLHPN[~is_read_BLHPN].any()
    assert (reading.steps_BLHPN[is_read_BLHPN] > 0).all()
    assert not reading.summaries_BLHPJ[reading.is_read_BLHPJ].any()
    assert (reading.summaries_BLHPJ[~reading.is_read_BLHPJ] > 0).all()
    assert (reading.is_read_BLHPJ.sum(-1) == Budget(0.4).num_selected(6)).all()
    assert reading.is_read_BLHPJ[:, :, :, 1, 9 // BLOCK].all()  # its own block is always read


def test_rows_are_told_alike_whichever_are_asked_with_them() -> None:
    model, given_ = encoder(), inputs(22)
    together = explain(model, *given_, Budget(0.4), torch.tensor([3, 17]))
    alone = explain(model, *given_, Budget(0.4), torch.tensor([17]))
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one[:, :, :, 1:], two)


@settings(max_examples=8, deadline=None)
@given(num_steps=st.integers(1, 27), density=st.floats(0.05, 1.0))
def test_an_audit_counts_what_dense_rows_put_on_blocks_that_were_not_read(
    num_steps: int, density: float
) -> None:
    model, given_ = encoder(layers=1), inputs(num_steps)
    rows = torch.arange(num_steps)
    with torch.no_grad():
        audited = audit(model, *given_, Budget(density), rows)
        is_read = explain(model, *given_, Budget(density), rows).is_read_BLHPJ[:, 0]
        q, k, _ = first_layer(model, given_)
    dense = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    read = dense * is_read.repeat_interleave(BLOCK, -1)[..., :num_steps]
    torch.testing.assert_close(audited.unread[:, 0], 1 - read.sum(-1))
    assert (audited.missed >= 0).all()
    assert (audited.missed <= audited.unread + 1e-12).all()
    recall = selection_recall(model, *given_, Budget(density), rows)
    torch.testing.assert_close(recall, 1 - audited.unread.mean(-1))


def planted(spread: bool) -> Audit:
    """One head whose query looks at a block far away: at one of its steps, or at all of them alike."""
    model = encoder(1, 1, 1, layers=1)
    layer = model.layers[0]
    x = torch.zeros(1, 40, 16, dtype=torch.float64)
    x[0, 20:24, 0] = 1.0
    if not spread:
        x[0, 20:23, 0] = 0.0
    q, k = torch.zeros(1, 1, 40, 16, dtype=torch.float64), torch.zeros(1, 1, 40, 16, dtype=torch.float64)
    q[..., 0], k[0, 0, :, 0] = 8.0 * 16**0.5, x[0, :, 0]
    with torch.no_grad():
        from sparse_model import explanation

        layer.attention.heads = lambda _: (q, k, k)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        layer.attention.select = lambda *_: reads_its_own_block()  # pyright: ignore
        parts = explanation._audit(layer.attention, x, Budget(0.1), torch.tensor([0]))  # pyright: ignore
    return Audit(*parts)


def reads_its_own_block():  # type: ignore[no-untyped-def]
    from sparse_model.attention import BlockSelection

    return BlockSelection(torch.arange(10).view(1, 1, 10, 1), torch.ones(1, 1, 10, dtype=torch.long), BLOCK)


def test_a_block_that_looks_the_same_everywhere_is_carried_by_its_summary_and_a_single_step_is_not() -> None:
    even, single = planted(spread=True), planted(spread=False)
    assert even.unread.item() > 0.99
    assert even.missed.item() == pytest.approx(0.0, abs=1e-9)
    assert single.unread.item() > 0.98
    assert single.missed.item() > 0.95


def test_nothing_is_missed_where_everything_is_read() -> None:
    audited = audit(encoder(), *inputs(22), Budget(1.0), torch.arange(22))
    assert audited.unread.abs().max() < 1e-9
    assert audited.missed.abs().max() < 1e-9
    reading: Reading = explain(encoder(), *inputs(22), Budget(1.0), torch.arange(22))
    assert reading.is_read_BLHPJ.all()
