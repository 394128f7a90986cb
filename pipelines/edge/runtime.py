"""What runs on a device: verify a bundle, load it, answer. Needs numpy, onnxruntime and cryptography alone.

Engines answer from the same file: "onnxruntime" runs its graph, the compiled ones take its weights
(pipelines.edge.compiled). `python -m pipelines.edge.runtime FOLDER KEY.pem REPEATS THREADS` times the golden
input and prints JSON.
"""

import io
import json
import logging
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from numpy.typing import NDArray

from pipelines.edge.compiled import LIBRARIES, CompiledEncoder, NotCompiled
from pipelines.edge.rows import Inputs, Row, encode_rows
from pipelines.edge.stream import Stream
from pipelines.edge.verification import BundleError, read_bundle, refuse_other_machines
from pipelines.edge.weights import read_weights

ENGINES = ("auto", *LIBRARIES, "onnxruntime")
_LOG = logging.getLogger(__name__)


class Engine(Protocol):
    """What answers: outputs [N, O] of one window, reading `blocks` key blocks per query block."""

    @property
    def name(self) -> str: ...

    def outputs(self, inputs: Inputs, blocks: int) -> NDArray[np.float32]: ...

    def outputs_and_selected(
        self, inputs: Inputs, blocks: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The same, and the key blocks read [layers that choose, S, J, K]."""
        ...


class OnnxEncoder:
    """The bundle's graph in ONNX Runtime."""

    name = "onnxruntime"

    def __init__(self, graph: bytes, threads: int) -> None:
        self._session = open_session(graph, threads)

    def outputs(self, inputs: Inputs, blocks: int) -> NDArray[np.float32]:
        return _array(self._session.run(["outputs"], inputs.feed(blocks))[0])[0]

    def outputs_and_selected(
        self, inputs: Inputs, blocks: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        outputs, selected = self._session.run(["outputs", "selected"], inputs.feed(blocks))
        return _array(outputs)[0], _array(selected)


def open_engine(
    name: str, graph: bytes, model: Mapping[str, Any], threads: int, precision: str = "fp32"
) -> Engine:
    """The named engine for a graph of a `model` (ModelConfig as a dictionary).

    "auto" is the fastest compiled one that runs, and the log says which it is. ONNX Runtime computes in
    float32 whatever the precision, which is slower and errs less. Raises NotCompiled where a named one does
    not run here, ValueError for a name that is none.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: {name!r} is not one of {', '.join(ENGINES)}")
    if name == "onnxruntime":
        return OnnxEncoder(graph, threads)
    try:
        engine = CompiledEncoder(graph, model, threads, precision, None if name == "auto" else name)
    except NotCompiled as why:
        if name != "auto":
            raise
        _LOG.warning("engine: onnxruntime, in float32 (%s)", why)
        return OnnxEncoder(graph, threads)
    _LOG.info("engine: %s, %s", engine.name, precision)
    return engine


@dataclass(frozen=True)
class EdgeModel:
    """A verified bundle that has answered its golden input on this machine."""

    manifest: dict[str, Any]
    preprocessing: dict[str, Any]
    golden: Inputs
    engine: Engine
    graph: bytes
    """The verified model.onnx."""

    @classmethod
    def load(cls, folder: Path, key: Ed25519PublicKey, threads: int = 1, engine: str = "auto") -> "EdgeModel":
        """Verify the bundle, load it and run its golden input. Raises BundleError where any of it fails.

        `engine`: as in `open_engine`.
        """
        manifest, files = read_bundle(folder, key)
        refuse_other_machines(folder.name, manifest)
        with np.load(io.BytesIO(files["golden.npz"]), allow_pickle=False) as arrays:
            golden = Inputs(arrays["numeric"], arrays["known"], arrays["categorical"])
            expected = arrays["outputs"]
        try:
            shape, precision = manifest["model"], manifest["precision"]
            opened = open_engine(engine, files["model.onnx"], shape, threads, precision)
        except NotCompiled:
            raise
        except Exception as error:  # onnxruntime raises its own, undocumented kinds
            raise BundleError(
                f"{folder / 'model.onnx'}: {engine} cannot load it ({type(error).__name__})"
            ) from error
        model = cls(manifest, json.loads(files["preprocessing.json"]), golden, opened, files["model.onnx"])
        model._self_test(folder, expected)
        return model

    def outputs(self, inputs: Inputs, density: float | None = None) -> NDArray[np.float32]:
        """The graph's answer [N, O]: logits for events, z-scored values otherwise.

        `density` is the share of key blocks that are read exactly; by default the one that was judged.
        Raises ValueError naming the input that does not fit.
        """
        self._check(inputs)
        share = self.manifest["density"] if density is None else density
        blocks = num_selected(share, inputs.num_steps, self.manifest["contract"]["block_size"])
        return self.engine.outputs(inputs, blocks)

    def stream(self, blocks: int, exact_blocks: int = 256, num_summaries: int = 256) -> Stream:
        """A new series that is answered as it comes (pipelines.edge.stream). Raises ValueError for a model
        that is not causal.
        """
        return Stream(read_weights(self.graph), self.manifest["model"], blocks, exact_blocks, num_summaries)

    def score(self, window: Inputs | Sequence[Row], density: float | None = None) -> NDArray[np.float32]:
        """One score per step asked: probabilities [horizon, O] for events, z-scored values [horizon, O] for
        forecasts, reconstruction errors [N, 1] for detection.

        Rows are encoded by the bundle's preprocessing (see pipelines.edge.rows). Raises ValueError.
        """
        contract = self.manifest["contract"]
        inputs = window if isinstance(window, Inputs) else encode_rows(window, self.preprocessing, contract)
        if contract["task"] == "detect":
            return self._surprise(inputs, density)
        outputs = self.outputs(inputs, density)[-contract["horizon"] :]
        return _sigmoid(outputs) if contract["task"] == "event" else outputs

    def _surprise(self, inputs: Inputs, density: float | None) -> NDArray[np.float32]:
        """Squared error of every step, filled in while hidden (sparse_model.detection), [N, 1]."""
        contract = self.manifest["contract"]
        target = inputs.numeric[:, contract["target_inputs"]]
        error = np.zeros((inputs.num_steps, 1), np.float32)
        fold_N = np.arange(inputs.num_steps) // contract["span"] % contract["num_folds"]
        for fold in range(contract["num_folds"]):
            hidden = (fold_N == fold)[:, None]
            filled = self.outputs(inputs._replace(known=inputs.known * ~hidden), density)
            error += np.square(filled - target).mean(-1, keepdims=True) * hidden
        return error

    def _check(self, inputs: Inputs) -> None:
        contract = self.manifest["contract"]
        for name, dtype, array in zip(
            Inputs._fields, (np.float32, np.float32, np.int64), inputs, strict=True
        ):
            width = len(contract["categorical" if name == "categorical" else "numeric"])
            if array.dtype != dtype or array.shape != (inputs.num_steps, width) or inputs.num_steps < 1:
                given = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"{name}: expected {np.dtype(dtype)} [steps >= 1, {width}], got {given}")
        sizes = zip(contract["categorical"], contract["cardinalities"], inputs.categorical.T, strict=True)
        for name, size, codes in sizes:
            if codes.min() < 0 or codes.max() >= size:
                given = f"{codes.min()}..{codes.max()}"
                raise ValueError(f"categorical: codes of {name} must lie in 0..{size - 1}, got {given}")

    def _self_test(self, folder: Path, expected: NDArray) -> None:
        error = float(np.abs(self.outputs(self.golden) - expected).max())
        if not error <= self.manifest["golden_tolerance"]:  # NaN fails
            allowed = self.manifest["golden_tolerance"]
            raise BundleError(
                f"{folder}: answers the golden input {error:.3g} off on this machine, {allowed:.3g} allowed"
            )


def open_session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A CPU session of an ONNX graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def num_selected(density: float, num_steps: int, block_size: int) -> int:
    """Key blocks read by each query block (sparse_model.config.Budget.num_selected)."""
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density: must lie in (0, 1], got {density!r}")
    num_blocks = -(-num_steps // block_size)
    return min(num_blocks, max(1, math.ceil(density * num_blocks - 1e-9)))


def measure_here(folder: Path, key: Ed25519PublicKey, repeats: int, threads: int) -> dict[str, Any]:
    """Latency of the golden input and memory of this process, the load included."""
    started = time.perf_counter()
    model = EdgeModel.load(folder, key, threads)
    load_ms = (time.perf_counter() - started) * 1e3
    model.score(model.golden)
    latency_ms = []
    for _ in range(repeats):
        started = time.perf_counter()
        model.score(model.golden)
        latency_ms.append((time.perf_counter() - started) * 1e3)
    return {
        "engine": model.engine.name,
        "num_steps": model.golden.num_steps,
        "threads": threads,
        "load_ms": load_ms,
        "latency_ms": latency_ms,
        "latency_p50_ms": float(np.quantile(latency_ms, 0.5)),
        "latency_p99_ms": float(np.quantile(latency_ms, 0.99)),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes() -> int:
    if sys.platform == "linux":  # ru_maxrss would count the parent's memory before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    half = np.float32(0.5)
    return half + half * np.tanh(half * x)  # no overflow at either end


def _array(value: object) -> NDArray:
    assert isinstance(value, np.ndarray)  # onnxruntime's type also allows sequences and maps
    return value


def _main(arguments: Sequence[str]) -> None:
    folder, key_file, repeats, threads = arguments
    key = load_pem_public_key(Path(key_file).read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    print(json.dumps(measure_here(Path(folder), key, int(repeats), int(threads))))


if __name__ == "__main__":
    _main(sys.argv[1:])
