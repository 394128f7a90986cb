"""What teaches a selector, where a frozen model is probed, how a pilot knows what its lists leave unread."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.benchmarks.quality.fitting import Batch, Stage
from pipelines.benchmarks.quality.pilot import fit_selector
from pipelines.pilot import disagreement, errors_left, kept_dense_where_needed
from sparse_model.config import Budget, ModelConfig
from sparse_model.layers import Attention, rotary
from sparse_model.losses import missed_mass, peaked_rows, selector_target
from sparse_model.model import SparseEncoder

FILLER, ASKING, ANSWERING, FIRST_DECOY = 1, 2, 3, 4


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_steps=st.integers(1, 30),
    size=st.integers(1, 9),
    length=st.integers(1, 30),
    sharpness=st.floats(0.0, 4.0),
)
def test_missed_mass_is_what_the_mean_key_does_not_carry(
    seed: int, num_steps: int, size: int, length: int, sharpness: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 4, 3, 6, generator=random, dtype=torch.float64) * sharpness
    k = torch.randn(1, 2, num_steps, 6, generator=random, dtype=torch.float64)
    length = min(length, num_steps)
    missed = missed_mass(q, k, size, torch.tensor([length]))
    for head in range(4):
        logits = q[0, head] @ k[0, head // 2, :length].T * 6**-0.5
        total = logits.exp().sum(-1)
        for block, part in enumerate(logits.split(size, dim=1)):
            plain = (part.exp().sum(-1) - part.shape[1] * part.mean(-1).exp()) / total
            torch.testing.assert_close(missed[0, head, :, block], plain, atol=1e-12, rtol=1e-9)
        assert (missed[0, head, :, -(-length // size) :] == 0).all()  # padding has nothing to miss


def test_a_diffuse_head_does_not_drown_a_peaked_one() -> None:
    peaked, diffuse = torch.zeros(1, 1, 1, 8), torch.full((1, 1, 1, 8), 0.001)
    peaked[..., 5] = 0.9
    target = selector_target(torch.cat([peaked, diffuse], dim=1), rankings=1)[0, 0, 0]
    assert target.argmax() == 5
    assert target[5] > 0.9
    torch.testing.assert_close(target.sum(), torch.tensor(1.0))
    nothing = selector_target(torch.zeros(1, 2, 1, 8), rankings=1)
    torch.testing.assert_close(nothing, torch.full((1, 1, 1, 8), 1 / 8))


def test_probes_of_a_frozen_model_fall_on_the_rows_that_ask() -> None:
    q, k = torch.zeros(2, 1, 100, 4), torch.zeros(2, 1, 100, 4)
    k[:, :, 7, 0] = 10.0
    q[0, :, 33, 0], q[1, :, 90, 0] = 10.0, 10.0
    rows = peaked_rows(q, k, count=5, block_size=8)
    assert (rows[0] == 33).all()
    assert (rows[1] == 90).all()


def test_frequencies_that_stand_still_compare_content_at_any_distance() -> None:
    x = torch.randn(1, 1, 1, 16).expand(1, 1, 20_000, 16)
    still, half = rotary(x, share=0.0), rotary(x, share=0.5)
    assert torch.equal(still, x)
    turned = (half[0, 0, 19_999] != x[0, 0, 0]).nonzero()[:, 0].tolist()
    assert turned == [0, 1, 2, 3, 8, 9, 10, 11]  # the fastest four of eight pairs
    torch.testing.assert_close(rotary(x)[..., :4], half[..., :4])


def asking_model() -> SparseEncoder:
    """One layer whose head attends from an asking step to the answering one, from all others evenly."""
    config = ModelConfig(
        num_numeric=1, cardinalities=(8,), num_outputs=2, width=8, num_layers=1, num_heads=1, num_kv_heads=1,
        ffn_width=8, block_size=16, selector_heads=1, selector_dim=4, rotary_share=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SparseEncoder(config)
    attention = model.layers[0].attention
    assert isinstance(attention, Attention)
    with torch.no_grad():
        model.embed_categorical[0].weight.copy_(torch.eye(8, 8))  # pyright: ignore
        model.embed_numeric.weight.zero_()
        model.embed_numeric.weight[0, 0] = 1.0  # channel 0 is the embedding of no token in use
        model.embed_numeric.bias.zero_()
        for weight, token in ((attention.to_q.weight, ASKING), (attention.to_kv.weight, ANSWERING)):  # pyright: ignore
            weight[:8].zero_()
            weight[0, token] = 2.5
        model.head.weight.normal_()
    return model


def asking_batch(num_sequences: int, num_steps: int, random: torch.Generator) -> Batch:
    """Mostly filler; three steps ask, one answers, and decoys of four kinds stand about."""
    special = torch.tensor([ASKING] * 3 + [ANSWERING] + [FIRST_DECOY + kind for kind in range(4)] * 8)
    tokens = torch.full((num_sequences, num_steps), FILLER)
    places = torch.rand(num_sequences, num_steps, generator=random).topk(len(special), dim=1).indices
    tokens.scatter_(1, places, special.expand(num_sequences, -1))
    numeric = torch.randn(num_sequences, num_steps, generator=random) * (tokens == ANSWERING)
    return Batch(numeric[..., None], tokens[..., None], places[:, :3], places[:, :3])


def held_out_windows() -> list[Tensor]:
    """Numeric, known, categorical, no target, and the outputs of the asking steps."""
    numeric, tokens, *_ = asking_batch(8, 512, torch.Generator().manual_seed(9))
    asked = (tokens == ASKING).expand(-1, -1, 2).float()
    return [numeric, torch.ones_like(numeric), tokens, asked, asked]


def test_a_selector_fitted_to_a_frozen_model_reads_what_its_attention_needs() -> None:
    model, windows, budget = asking_model(), [held_out_windows()], Budget(0.125)
    before, unlike = errors_left(model, windows, budget)[0], disagreement(model, windows, budget)
    backbone = {name: p.clone() for name, p in model.named_parameters() if ".selector." not in name}
    fit_selector(model, asking_batch, Stage(num_steps=512, updates=60, batch=2, rate=3e-2), seed=0)
    assert before > 0.4  # seen without labels: an unfitted selector misses most
    assert unlike > 0.3
    assert errors_left(model, windows, budget)[0] < 0.02
    assert disagreement(model, windows, budget) < 0.01
    assert kept_dense_where_needed(model, windows, budget, 0.05) is model
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in backbone.items())


def test_a_layer_that_no_list_serves_is_kept_dense() -> None:
    model, windows, budget = asking_model(), [held_out_windows()], Budget(0.125)
    kept = kept_dense_where_needed(model, windows, budget, 0.05)
    assert kept.config.dense_layers == (0,)
    assert ModelConfig.from_dict(kept.config.to_dict()) == kept.config
    assert errors_left(kept, windows, budget) == [0.0]
    assert disagreement(kept, windows, budget) == 0.0
    with torch.no_grad():
        torch.testing.assert_close(kept(*windows[0][:3], budget), model(*windows[0][:3]))


def test_a_config_refuses_layers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="dense_layers"):
        ModelConfig(num_numeric=1, cardinalities=(), num_outputs=1, num_layers=2, dense_layers=(2,))
