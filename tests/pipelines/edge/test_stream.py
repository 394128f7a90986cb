"""A stream's answers are the batch's, within its bounds exactly so, and its memory does not grow."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import random_model, random_window

from pipelines.edge.export import export_onnx
from pipelines.edge.rows import Inputs
from pipelines.edge.stream import Stream
from pipelines.edge.weights import read_weights
from sparse_model.config import Budget
from sparse_model.layers import Layer
from sparse_model.model import SparseEncoder

STEPS = 203


class Case(NamedTuple):
    model: SparseEncoder
    weights: dict[str, np.ndarray]
    window: Inputs

    def stream(self, blocks: int, exact_blocks: int = 256, num_summaries: int = 256) -> Stream:
        bounds = (blocks, exact_blocks, num_summaries)
        return Stream(self.weights, self.model.config.to_dict(), *bounds, dtype=np.float64)

    def batch(self, num_steps: int, density: float) -> np.ndarray:
        numeric, known, categorical = (torch.from_numpy(array[None, :num_steps]) for array in self.window)
        with torch.inference_mode():
            inputs = numeric.double(), known.double(), categorical
            return self.model(*inputs, Budget(density))[0].numpy()


def _case(tmp_path_factory: pytest.TempPathFactory, **shape: object) -> Case:
    # channels whose scale is a power of two, so that weights scaled in float32 are exact in float64
    model = random_model(1, causal=True, width=64, **shape)
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.eps = torch.finfo(torch.float32).eps
    path = tmp_path_factory.mktemp("stream") / "model.onnx"
    export_onnx(model, path)
    return Case(model.double(), read_weights(path.read_bytes()), random_window(model.config, STEPS, 3))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case(tmp_path_factory, num_kv_heads=2, selector_heads=2)


@settings(max_examples=4, deadline=None)
@given(
    cuts=st.sets(st.integers(1, STEPS - 1), max_size=4),
    blocks=st.integers(1, 30),
)
def test_each_append_is_answered_as_the_batch_up_to_it(case: Case, cuts: set[int], blocks: int) -> None:
    stream, first = case.stream(blocks), 0
    for last in [*sorted(cuts), STEPS]:
        outputs = stream.append(case.window.steps(first, last))
        num_blocks = -(-last // 8)
        expected = case.batch(last, min(blocks, num_blocks) / num_blocks)
        np.testing.assert_allclose(outputs, expected[first:last], atol=1e-9)
        first = last
    assert stream.num_steps == STEPS


def test_single_steps_and_whole_blocks_agree_where_a_block_ends(case: Case) -> None:
    one, whole = case.stream(3), case.stream(3)
    steps = [one.append(case.window.steps(step, step + 1)) for step in range(64)]
    blocks = whole.append(case.window.steps(0, 64))
    np.testing.assert_allclose(np.concatenate(steps)[7::8], blocks[7::8], atol=1e-9)


def test_layers_that_read_everything_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    case = _case(tmp_path_factory, num_layers=2, dense_layers=(0,), rotary_share=0.5, block_size=5)
    outputs = case.stream(4).append(case.window)
    np.testing.assert_allclose(outputs, case.batch(STEPS, 4 / 41), atol=1e-9)


@pytest.mark.parametrize(("blocks", "exact_blocks", "num_summaries"), [(2, 5, 4), (9, 5, 100), (1, 1, 3)])
def test_beyond_its_bounds_it_answers_as_a_batch_with_the_same_bounds(
    case: Case, blocks: int, exact_blocks: int, num_summaries: int
) -> None:
    outputs = case.stream(blocks, exact_blocks, num_summaries).append(case.window)
    expected = _bounded_batch(case, blocks, exact_blocks, num_summaries)
    np.testing.assert_allclose(outputs, expected, atol=1e-9)


def test_memory_stays_what_it_was_and_a_float32_stream_is_near(case: Case) -> None:
    stream = Stream(case.weights, case.model.config.to_dict(), 3, exact_blocks=6, num_summaries=4)
    stream.append(case.window)
    before = stream.num_bytes
    for _ in range(5):
        stream.append(case.window)
    assert stream.num_bytes - before <= 8 * case.model.config.width * 4  # an open block
    near = Stream(case.weights, case.model.config.to_dict(), 30).append(case.window)
    np.testing.assert_allclose(near, case.stream(30).append(case.window), atol=2e-5)


def test_models_that_read_both_ways_and_senseless_bounds_are_refused(case: Case) -> None:
    shape = case.model.config.to_dict()
    with pytest.raises(ValueError, match="causal: true"):
        Stream(case.weights, shape | {"causal": False}, 1)
    with pytest.raises(ValueError, match="at least 1"):
        Stream(case.weights, shape, 0)


def _bounded_batch(case: Case, blocks: int, exact_blocks: int, num_summaries: int) -> np.ndarray:
    """The definition, layer by layer over the whole sequence: plain, and sharing nothing with the stream."""
    numeric, known, categorical = (torch.from_numpy(array[None]) for array in case.window)
    with torch.inference_mode():
        x_NW = case.model.embed(numeric.double(), known.double(), categorical)[0]
        for layer in case.model.layers:
            assert isinstance(layer, Layer)
            h_NW = layer.attention_norm(x_NW)
            mixed = _bounded_attention(layer, h_NW, blocks, exact_blocks, num_summaries)
            x_NW = x_NW + layer.attention.to_out(mixed)
            x_NW = x_NW + layer.ffn(layer.ffn_norm(x_NW))
        return case.model.head(case.model.norm(x_NW)).numpy()


def _bounded_attention(
    layer: Layer, h_NW: torch.Tensor, blocks: int, exact_blocks: int, num_summaries: int
) -> torch.Tensor:
    config = layer.attention.config
    q, k, v = (t[0] for t in layer.attention.heads(h_NW[None]))
    sq, sk = (t[0] for t in layer.attention.selector(h_NW[None]))
    size, rows = config.block_size, []
    for block in range(-(-len(h_NW) // size)):
        own = slice(block * size, min(len(h_NW), (block + 1) * size))
        exact = range(max(0, block + 1 - exact_blocks), block)
        old = _merged(exact.start, size, num_summaries)
        heads = []
        for head in range(config.num_heads):
            ranking, group = (
                head * config.selector_heads // config.num_heads,
                head * config.num_kv_heads // config.num_heads,
            )
            score = _scores(sq[ranking], sk[ranking], own, exact, size)
            read = sorted(score, key=lambda j: (-score[j], j))[: blocks - 1]
            spans = [range(j * size, (j + 1) * size) for j in exact if j not in read] + old
            steps = [step for j in sorted(read) for step in range(j * size, (j + 1) * size)]
            heads.append(_softmax_read(q[head], k[group], v[group], own, steps, spans))
        rows.append(torch.cat(heads, dim=1))
    return torch.cat(rows)


def _scores(sq: torch.Tensor, sk: torch.Tensor, own: slice, exact: range, size: int) -> dict[int, float]:
    logits = sq[own] @ sk.T * sq.shape[-1] ** -0.5
    step = torch.arange(len(sk))
    logits = logits.masked_fill(step > step[own, None], -torch.inf)
    best = {j: logits[:, j * size : (j + 1) * size].amax(1) for j in exact}
    of_own = logits[:, own].amax(1)
    norm = torch.stack([*best.values(), of_own]).logsumexp(0)
    return {j: float((m - norm).max()) for j, m in best.items()}


def _merged(num_old: int, size: int, num_summaries: int) -> list[range]:
    spans: list[range] = []
    for j in range(num_old):
        spans.append(range(j * size, (j + 1) * size))
        if len(spans) > num_summaries:
            pairs = [len(a) + len(b) for a, b in pairwise(spans)]
            at = pairs.index(min(pairs))
            spans[at : at + 2] = [range(spans[at].start, spans[at + 1].stop)]
    return spans


def _softmax_read(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own: slice, steps: list[int], spans: list[range]
) -> torch.Tensor:
    picked = [*steps, *range(own.start, own.stop)]
    means = [
        torch.stack([table[list(span)].mean(0) for span in spans]) if spans else table[:0] for table in (k, v)
    ]
    counts = torch.tensor([float(len(span)) for span in spans], dtype=q.dtype)
    scale = q.shape[-1] ** -0.5
    logits = q[own] @ k[picked].T * scale
    ahead = torch.tensor(picked) > torch.arange(own.start, own.stop)[:, None]
    logits = torch.cat(
        [logits.masked_fill(ahead, -torch.inf), q[own] @ means[0].T * scale + counts.log()], dim=1
    )
    return logits.softmax(-1) @ torch.cat([v[picked], means[1]])
