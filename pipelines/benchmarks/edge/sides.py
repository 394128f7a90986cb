"""One side of the comparison in a process of its own: load, answer again and again, say time and memory.

`python -m pipelines.benchmarks.edge.sides FOLDER SIDE STEPS DENSITY THREADS REPEATS` prints one JSON object.
Every side runs the same weights on the same input. Dense ones read everything; PyTorch's and OpenVINO's go
through the model's own modules (scaled_dot_product_attention).
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.edge.compiled import LIBRARIES, CompiledEncoder
from pipelines.edge.rows import Inputs

if TYPE_CHECKING:
    from torch import nn

DENSE = ("onnxruntime_dense", "openvino_dense", "torch_dense", "torch_compiled_dense")
Answer = Callable[[], np.ndarray]


def window(model: dict[str, Any], num_steps: int) -> Inputs:
    """Noise of the model's shape, equal in every process."""
    random = np.random.default_rng(0)
    codes = [random.integers(0, size, num_steps) for size in model["cardinalities"]]
    shape = (num_steps, model["num_numeric"])
    return Inputs(random.normal(size=shape).astype(np.float32), np.ones(shape, "f4"), np.stack(codes, 1))


def _compiled(
    name: str, precision: str, folder: Path, model: dict[str, Any], inputs: Inputs, blocks: int, threads: int
) -> Answer:
    engine = CompiledEncoder((folder / "model.onnx").read_bytes(), model, threads, precision, name)
    return lambda: engine.outputs(inputs, blocks)


def _graph(folder: Path, model: dict[str, Any], inputs: Inputs, blocks: int, threads: int) -> Answer:
    from pipelines.edge.runtime import OnnxEncoder

    engine = OnnxEncoder((folder / "model.onnx").read_bytes(), threads)
    return lambda: engine.outputs(inputs, blocks)


def _onnxruntime_dense(
    folder: Path, model: dict[str, Any], inputs: Inputs, blocks: int, threads: int
) -> Answer:
    from pipelines.edge.runtime import open_session

    session = open_session((folder / "dense.onnx").read_bytes(), threads)
    feed = {name: array[None] for name, array in inputs._asdict().items()}
    return lambda: np.asarray(session.run(["outputs"], feed)[0])[0]


def _torch_dense(folder: Path, model: dict[str, Any], inputs: Inputs, blocks: int, threads: int) -> Answer:
    return _in_torch(_dense_module(folder), inputs, threads)


def _torch_compiled_dense(
    folder: Path, model: dict[str, Any], inputs: Inputs, blocks: int, threads: int
) -> Answer:
    import torch

    return _in_torch(torch.compile(_dense_module(folder), dynamic=False), inputs, threads)


def _in_torch(module: Callable[..., Any], inputs: Inputs, threads: int) -> Answer:
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array)[None] for array in inputs]

    def answer() -> np.ndarray:
        with torch.inference_mode():
            return module(*tensors)[0].numpy()

    return answer


def _openvino_dense(folder: Path, model: dict[str, Any], inputs: Inputs, blocks: int, threads: int) -> Answer:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would report over the network
    import openvino
    import torch

    tensors = tuple(torch.from_numpy(array)[None] for array in inputs)
    converted = openvino.convert_model(torch.export.export(_dense_module(folder), tensors))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(converted, "CPU", settings)
    arrays = [array[None] for array in inputs]
    return lambda: np.array(compiled(arrays)[0][0])


def _dense_module(folder: Path) -> "nn.Module":
    import torch

    from pipelines.benchmarks.edge.models import load, rough_dense

    torch.set_grad_enabled(False)
    return rough_dense(load(folder))


_SIDES = {
    **{name: partial(_compiled, name, "fp32") for name in LIBRARIES},
    **{f"{name}_int16": partial(_compiled, name, "int16") for name in LIBRARIES},
    "graph": _graph,
    "onnxruntime_dense": _onnxruntime_dense,
    "openvino_dense": _openvino_dense,
    "torch_dense": _torch_dense,
    "torch_compiled_dense": _torch_compiled_dense,
}


def main(folder: Path, side: str, num_steps: int, density: float, threads: int, repeats: int) -> None:
    """Prints latency_ms (after one warm-up where there is more than one), the peak and some outputs."""
    from pipelines.edge.runtime import num_selected, peak_memory_bytes

    model = json.loads((folder / "config.json").read_bytes())
    inputs = window(model, num_steps)
    blocks = num_selected(density, num_steps, model["block_size"])
    started = time.perf_counter()
    answer = _SIDES[side](folder, model, inputs, blocks, threads)
    load_ms = (time.perf_counter() - started) * 1e3
    outputs, latency_ms = None, []
    for turn in range(repeats + (repeats > 1)):
        started = time.perf_counter()
        outputs = answer()
        if turn or repeats == 1:
            latency_ms.append((time.perf_counter() - started) * 1e3)
    assert outputs is not None
    facts = {"load_ms": load_ms, "latency_ms": latency_ms, "peak_memory_bytes": peak_memory_bytes()}
    print(json.dumps({**facts, "outputs": outputs[:: max(1, num_steps // 64), 0].tolist()}))


if __name__ == "__main__":
    place, name, *numbers = sys.argv[1:]
    main(Path(place), name, int(numbers[0]), float(numbers[1]), int(numbers[2]), int(numbers[3]))
