"""The exported graph is the checkpoint's function, at any length and any budget."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import random_model, random_window

from pipelines.edge.export import export_onnx
from pipelines.edge.parity import parity
from pipelines.edge.runtime import OnnxEncoder, num_selected
from sparse_model.config import Budget

SHAPES = (
    {"num_kv_heads": 2, "selector_heads": 2},
    {"num_kv_heads": 1, "selector_heads": 4, "block_size": 5, "cardinalities": (3, 4)},
    {"num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "selector_heads": 1, "cardinalities": ()},
    {"block_size": 300, "num_outputs": 3},
    {"num_layers": 3, "dense_layers": (1,), "rotary_share": 0.5},
)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 1000),
    num_steps=st.integers(1, 600),
    density=st.floats(0.01, 1.0),
)
def test_graph_gives_what_the_checkpoint_gives(
    tmp_path_factory: pytest.TempPathFactory, shape: dict, seed: int, num_steps: int, density: float
) -> None:
    model = random_model(seed, **shape)
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(model, path)
    report = parity(_engine(path), model, [random_window(model.config, num_steps, seed)], density)
    assert report.passed, report
    assert report.selection_equal > 0.99


def test_graph_runs_the_budget_it_is_given_and_one_file_serves_every_length(tmp_path: Path) -> None:
    model = random_model()
    export_onnx(model, tmp_path / "model.onnx")
    engine = _engine(tmp_path / "model.onnx")
    for num_steps, blocks in ((1, 1), (48, 1), (48, 3), (700, 5)):
        outputs, selected = engine.outputs_and_selected(random_window(model.config, num_steps), blocks)
        assert outputs.shape == (num_steps, 1)
        num_blocks = -(-num_steps // 8)
        assert selected.shape == (2, model.config.selector_heads, num_blocks, blocks)
        own = np.arange(num_blocks)[:, None]
        assert (selected == own).any(-1).all()
        assert selected.min() >= 0
        assert selected.max() < num_blocks


def test_budget_out_of_range_is_brought_into_range(tmp_path: Path) -> None:
    model = random_model()
    export_onnx(model, tmp_path / "model.onnx")
    engine = _engine(tmp_path / "model.onnx")
    window = random_window(model.config, 48)
    for asked, used in ((-3, 1), (0, 1), (99, 6)):
        np.testing.assert_array_equal(engine.outputs(window, asked), engine.outputs(window, used))


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    first = export_onnx(random_model(3), tmp_path / "first.onnx")
    second = export_onnx(random_model(3), tmp_path / "second.onnx")
    other = export_onnx(random_model(4), tmp_path / "other.onnx")
    assert first.sha256 == second.sha256 != other.sha256
    assert first.size_bytes == (tmp_path / "first.onnx").stat().st_size


@pytest.mark.parametrize("part", ["to_q", "to_kv", "to_out"])
def test_parity_notices_a_graph_of_slightly_other_weights(tmp_path: Path, part: str) -> None:
    model = random_model()
    export_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        model.get_parameter(f"layers.1.attention.{part}.weight").mul_(1.001)
    assert not parity(_engine(tmp_path / "model.onnx"), model, [random_window(model.config, 200)], 0.5).passed


def test_parity_notices_a_graph_that_reads_other_blocks(tmp_path: Path) -> None:
    model = random_model()
    export_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        weight = model.get_parameter("layers.1.attention.selector.to_qk.weight")
        weight.copy_(weight.flip(0))
    report = parity(_engine(tmp_path / "model.onnx"), model, [random_window(model.config, 200)], 0.25)
    assert report.same_blocks_error <= report.tolerance
    assert report.tie_gap > report.tie_tolerance
    assert not report.passed


def test_device_and_checkpoint_count_blocks_alike() -> None:
    for num_steps in (1, 7, 8, 9, 800, 2304):
        for density in (1e-3, 0.1, 0.125, 0.3, 0.7, 1.0):
            assert num_selected(density, num_steps, 8) == Budget(density).num_selected(-(-num_steps // 8))


def _engine(path: Path) -> OnnxEncoder:
    return OnnxEncoder(path.read_bytes(), threads=1)
