"""The encoder as compiled code (kernel/encoder.c), where it was built: faster than the graph, same answers.

Building the package compiles it where there is a C compiler; elsewhere everything works without it. The same
source is built for several kinds of processor; which one answers is told by the engine's name.
"""

import ctypes
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.edge.rows import Inputs
from pipelines.edge.weights import read_weights

PRECISIONS = ("fp32", "int16")
LIBRARIES = {"compiled-avx512": "_encoder_avx512", "compiled": "_encoder"}
"""Engines and their libraries, the fastest first."""
_NEEDS = {"compiled-avx512": "AVX-512 or its VNNI", "compiled": "AVX2 or FMA"}
FOLDER = Path(__file__).parent / "kernel"
_SHAPE = (
    "width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "ffn_width",
    "block_size",
    "selector_heads",
    "selector_dim",
    "num_numeric",
)


class NotCompiled(RuntimeError):
    """The compiled encoder is not here, or does not run on this processor. One line that says so."""


def library_file(name: str) -> Path:
    """Where the named engine's library lies. Raises NotCompiled where it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        path = FOLDER / f"{LIBRARIES[name]}{suffix}"
        if path.exists():
            return path
    raise NotCompiled(f"{FOLDER}: {name} was not built; install dankai where there is a C compiler")


def running_here() -> list[str]:
    """Names of the compiled engines that this processor can run, the fastest first."""
    names = []
    for name in LIBRARIES:
        try:
            load_library(name)
        except NotCompiled:
            continue
        names.append(name)
    return names


def load_library(name: str) -> ctypes.CDLL:
    """The named engine's library, its functions declared. Raises NotCompiled where it cannot run."""
    path = library_file(name)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotCompiled(f"{path}: cannot be loaded ({error}); install dankai again") from None
    if not library.dankai_edge_runs_here():
        raise NotCompiled(f"{path}: this processor lacks {_NEEDS[name]}")
    pointer, integers = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64)
    library.dankai_edge_load.restype = pointer
    library.dankai_edge_load.argtypes = [pointer, pointer, pointer, pointer, ctypes.c_int32]
    library.dankai_edge_encode.restype = ctypes.c_int
    library.dankai_edge_encode.argtypes = [pointer] * 4 + [ctypes.c_int64] * 2 + [ctypes.c_int32, pointer]
    library.dankai_edge_encode.argtypes += [integers]
    library.dankai_edge_free.argtypes = [pointer]
    return library


class CompiledEncoder:
    """An engine of the runtime: the graph's weights, packed for the compiled code."""

    def __init__(
        self,
        graph: bytes,
        model: Mapping[str, Any],
        threads: int,
        precision: str = "fp32",
        name: str | None = None,
    ) -> None:
        """`model` is ModelConfig as a dictionary; `precision` "fp32" or "int16", that of the layers' products
        but not of the selector's; `name` one of LIBRARIES, by default the fastest that runs here.
        Raises NotCompiled, or ValueError for another precision."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
        if model.get("causal"):
            raise NotCompiled(
                "the compiled encoder reads both ways; causal models need onnxruntime or a stream"
            )
        self.name = name or next(iter(running_here()), "compiled")
        self._library = load_library(self.name)
        self._model, self._threads = dict(model), threads
        self._sparse_layers = model["num_layers"] - len(model["dense_layers"])
        weights = read_weights(graph)
        sizes = np.array(model["cardinalities"], np.int64)
        shape = [*(model[name] for name in _SHAPE), len(sizes), model["num_outputs"]]
        dense = np.array([layer in model["dense_layers"] for layer in range(model["num_layers"])], np.int32)
        arrays = [_fitting(weights, name, size) for name, size in _weight_shapes(model).items()]
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        self._handle = self._library.dankai_edge_load(
            np.array(shape, np.int32).ctypes.data,
            dense.ctypes.data,
            sizes.ctypes.data,
            pointers,
            precision == "int16",
        )
        if not self._handle:
            raise MemoryError("the compiled encoder found no memory for its weights")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.dankai_edge_free(self._handle)

    def outputs(self, inputs: Inputs, blocks: int) -> NDArray[np.float32]:
        """The encoder's answer [N, O], reading `blocks` key blocks per query block."""
        return self._run(inputs, blocks, None)

    def outputs_and_selected(
        self, inputs: Inputs, blocks: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The answer [N, O], and the key blocks read [layers, S, J, K] in the order of their numbers."""
        num_blocks = -(-inputs.num_steps // self._model["block_size"])
        blocks = min(max(blocks, 1), num_blocks)
        shape = (self._sparse_layers, self._model["selector_heads"], num_blocks, blocks)
        selected = np.empty(shape, np.int64)
        return self._run(inputs, blocks, selected), selected

    def _run(self, inputs: Inputs, blocks: int, selected: NDArray[np.int64] | None) -> NDArray[np.float32]:
        num_blocks = -(-inputs.num_steps // self._model["block_size"])
        outputs = np.empty((inputs.num_steps, self._model["num_outputs"]), np.float32)
        arrays = [np.ascontiguousarray(array) for array in inputs]
        where = None if selected is None else selected.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
        failed = self._library.dankai_edge_encode(
            self._handle,
            *(array.ctypes.data for array in arrays),
            inputs.num_steps,
            min(max(blocks, 1), num_blocks),
            self._threads,
            outputs.ctypes.data,
            where,
        )
        if failed:
            raise MemoryError(f"the compiled encoder found no memory for {inputs.num_steps:,} steps")
        return outputs


def _weight_shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names in the graph, in the order of dankai_edge_load (kernel/model.h), all [inputs, outputs]."""
    width, hidden = model["width"], model["ffn_width"]
    channels, selector = width // model["num_heads"], model["selector_heads"] * model["selector_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (2 * model["num_numeric"], width),
        "embed_bias": (width,),
        "norm": (width,),
        "head": (width, model["num_outputs"]),
        "head_bias": (model["num_outputs"],),
        "frequency": (channels // 2,),
        "selector_frequency": (model["selector_dim"] // 2,),
    }
    shapes |= {f"embed_categorical.{i}": (size, width) for i, size in enumerate(model["cardinalities"])}
    for layer in range(model["num_layers"]):
        shapes |= {
            f"layers.{layer}.attention_norm": (width,),
            f"layers.{layer}.to_kv": (width, 2 * model["num_kv_heads"] * channels),
            f"layers.{layer}.to_selector_k": (width, selector),
            f"layers.{layer}.chunk.to_selector_q": (width, selector),
            f"layers.{layer}.chunk.to_q": (width, width),
            f"layers.{layer}.chunk.to_out": (width, width),
            f"layers.{layer}.chunk.ffn_norm": (width,),
            f"layers.{layer}.chunk.to_hidden": (width, 2 * hidden),
            f"layers.{layer}.chunk.ffn_out": (hidden, width),
        }
    return shapes


def _fitting(weights: Mapping[str, NDArray], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What the compiled code will read without looking at its size again."""
    array = weights.get(name)
    if array is None or array.shape != shape:
        given = "is missing" if array is None else f"has shape {list(array.shape)}"
        raise ValueError(f"graph: {name} {given}, expected {list(shape)}; build the bundle again")
    return np.ascontiguousarray(array)
