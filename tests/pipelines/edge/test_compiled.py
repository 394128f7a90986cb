"""The compiled encoder answers as the checkpoint does, at each of its precisions, or says that it cannot."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import KEY, built_bundle, random_model, random_window

from pipelines.edge import compiled
from pipelines.edge.bundle import verify_bundle
from pipelines.edge.compiled import CompiledEncoder, NotCompiled
from pipelines.edge.export import export_onnx
from pipelines.edge.parity import parity
from pipelines.edge.precision import Precision
from pipelines.edge.runtime import EdgeModel, OnnxEncoder, open_engine
from pipelines.edge.weights import read_weights
from sparse_model.model import SparseEncoder
from validation.errors import InputError

SHAPES = (
    {"num_kv_heads": 2, "selector_heads": 2},
    {"num_kv_heads": 1, "selector_heads": 4, "block_size": 5, "cardinalities": (3, 4)},
    {"num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "selector_heads": 1, "cardinalities": ()},
    {"block_size": 300, "num_outputs": 17},
    {
        "num_layers": 3,
        "dense_layers": (1,),
        "rotary_share": 0.5,
        "width": 72,
        "num_heads": 6,
        "num_kv_heads": 6,
    },
)
PRECISIONS: tuple[Precision, ...] = ("fp32", "int16")


def _graph(model: SparseEncoder, folder: Path) -> bytes:
    export_onnx(model, folder / "model.onnx")
    return (folder / "model.onnx").read_bytes()


def _engine(
    model: SparseEncoder, folder: Path, name: str, threads: int = 2, precision: str = "fp32"
) -> CompiledEncoder:
    return CompiledEncoder(_graph(model, folder), model.config.to_dict(), threads, precision, name)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_answers_as_the_checkpoint_does(
    tmp_path: Path, compiled_name: str, shape: dict, precision: Precision
) -> None:
    model = random_model(1, **shape)
    engine = _engine(model, tmp_path, compiled_name, precision=precision)
    for num_steps, density in ((7, 0.5), (103, 0.3)):
        # a few steps alone have no spread of errors to take a tolerance from
        windows = [random_window(model.config, num_steps, seed) for seed in range(4 if num_steps < 9 else 1)]
        report = parity(engine, model, windows, density, precision)
        assert report.passed, report
        assert report.selection_equal > 0.99


def _flipped(weight: torch.Tensor) -> None:
    place = int(weight.abs().argmax())
    weight.view(-1)[place].mul_(-1)


def _head_of_another(weight: torch.Tensor) -> None:
    weight.copy_(weight.unflatten(0, (4, -1)).flip(0).flatten(0, 1))


WRONG: dict[str, tuple[str, Callable[[torch.Tensor], object]]] = {
    "one weight's sign": ("layers.0.attention.to_out.weight", _flipped),
    "one output's scale": ("head.weight", lambda weight: weight.mul_(1.02)),
    "one column's scale": ("layers.1.ffn.to_out.weight", lambda weight: weight[3].mul_(1.5)),
    "swapped heads": ("layers.0.attention.to_q.weight", _head_of_another),
    "other blocks": ("layers.1.attention.selector.to_qk.weight", lambda weight: weight.copy_(weight.flip(0))),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_that_is_not_the_checkpoint_is_noticed(
    tmp_path: Path, compiled_name: str, precision: Precision
) -> None:
    model = random_model()
    engine, window = (
        _engine(model, tmp_path, compiled_name, precision=precision),
        random_window(model.config, 200),
    )
    assert parity(engine, model, [window], 0.25, precision).passed
    for wrong, (name, alter) in WRONG.items():
        weight = model.get_parameter(name)
        kept = weight.detach().clone()
        with torch.no_grad():
            alter(weight)
            assert not parity(engine, model, [window], 0.25, precision).passed, wrong
            weight.copy_(kept)


def test_answers_may_differ_by_as_much_as_ties_let_the_checkpoint_differ_from_itself(
    tmp_path: Path, compiled_name: str
) -> None:
    model = random_model()
    windows = [random_window(model.config, 200)]
    report = parity(_engine(model, tmp_path, compiled_name, precision="int16"), model, windows, 0.1, "int16")
    assert report.passed
    assert report.tolerance < report.answer_tolerance < 0.1  # of log-odds that spread over several
    astray = {"max_abs_error": report.answer_tolerance * 1.01}
    assert not report.model_copy(update=astray).passed
    alone = parity(_engine(model, tmp_path, compiled_name), model, windows, 1.0)
    assert alone.answer_tolerance == alone.tolerance  # reading everything leaves nothing to choose


def test_threads_change_no_bit_and_budgets_are_brought_into_range(tmp_path: Path, compiled_name: str) -> None:
    model = random_model()
    one, three = (_engine(model, tmp_path, compiled_name, threads) for threads in (1, 3))
    window = random_window(model.config, 601)
    assert one.outputs(random_window(model.config, 1), 1).shape == (1, 1)
    np.testing.assert_array_equal(one.outputs(window, 9), three.outputs(window, 9))
    for asked, used in ((-3, 1), (0, 1), (999, 76)):
        np.testing.assert_array_equal(one.outputs(window, asked), one.outputs(window, used))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gates_that_are_shut_altogether_let_nothing_through(
    tmp_path: Path, compiled_name: str, precision: Precision
) -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter("layers.0.ffn.to_hidden.weight")[: model.config.ffn_width] *= 300
    engine = _engine(model, tmp_path, compiled_name, precision=precision)
    report = parity(engine, model, [random_window(model.config, 103)], 0.3, precision)
    assert report.passed, report


def test_a_value_that_is_no_number_stays_where_it_can_be_seen(tmp_path: Path, compiled_name: str) -> None:
    model = random_model()
    engine, window = _engine(model, tmp_path, compiled_name), random_window(model.config, 48)
    window.numeric[:] = np.nan
    assert np.isnan(engine.outputs(window, 2)).all()


def test_a_named_engine_runs_or_raises_and_a_chosen_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model()
    graph, shape = _graph(model, tmp_path), model.config.to_dict()
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    for name in ("compiled", "compiled-avx512"):
        with pytest.raises(NotCompiled, match=f"{name} was not built; install dankai"):
            open_engine(name, graph, shape, 1)
    with pytest.raises(ValueError, match="not one of auto, compiled-avx512, compiled, onnxruntime"):
        open_engine("fastest", graph, shape, 1)
    with caplog.at_level(logging.INFO):
        assert open_engine("auto", graph, shape, 1, "int16").name == "onnxruntime"
    assert "onnxruntime, in float32" in caplog.text
    with pytest.raises(InputError, match="--precision int16"):
        built_bundle(tmp_path, precision="int16")


def test_a_bundle_of_reduced_precision_is_answered_by_either_engine(
    tmp_path: Path, compiled_name: str
) -> None:
    bundle = built_bundle(tmp_path, precision="int16")
    manifest = verify_bundle(Path(bundle.folder), KEY.public_key())
    assert (manifest["precision"], manifest["extras"]) == ("int16", ["compiled"])
    assert bundle.parity.passed
    for name in (compiled_name, "onnxruntime"):
        model = EdgeModel.load(Path(bundle.folder), KEY.public_key(), engine=name)
        assert model.engine.name == name


def test_weights_are_read_from_the_graph_without_its_package(tmp_path: Path) -> None:
    import onnx
    from onnx.numpy_helper import to_array

    graph = _graph(random_model(), tmp_path)
    stored = {tensor.name: to_array(tensor) for tensor in onnx.load_from_string(graph).graph.initializer}
    read = read_weights(graph)
    assert {name for name, array in stored.items() if array.dtype == np.float32} == set(read)
    for name, array in read.items():
        np.testing.assert_array_equal(array, stored[name])
    for harmed in (graph[:-1], graph[: len(graph) // 2], b"\xff" * 64):
        with pytest.raises(ValueError, match="not an ONNX file"):
            read_weights(harmed)


def test_a_graph_of_another_shape_is_refused_before_its_weights_are_read(
    tmp_path: Path, compiled_name: str
) -> None:
    model = random_model()
    graph, shape = _graph(model, tmp_path), model.config.to_dict()
    for name, value in (("width", 64), ("num_layers", 3), ("ffn_width", 100), ("cardinalities", (5,))):
        with pytest.raises(ValueError, match="build the bundle again"):
            CompiledEncoder(graph, shape | {name: value}, 1, name=compiled_name)


def test_causal_models_are_left_to_the_graph(tmp_path: Path, compiled_name: str) -> None:
    model = random_model(causal=True)
    with pytest.raises(NotCompiled, match="causal"):
        _engine(model, tmp_path, compiled_name)
    report = parity(OnnxEncoder(_graph(model, tmp_path), 1), model, [random_window(model.config, 201)], 0.3)
    assert report.passed, report
