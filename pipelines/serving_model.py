"""The code inside a registered model (MLflow's "models from code"): never imported by dankai itself.

MLflow copies this file and the sparse_model package into the model and runs it where the model is served,
so it needs mlflow, torch, safetensors and numpy there, and reads weights from safetensors: no pickle.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray
from safetensors.torch import load_file

from sparse_model.config import Budget, ModelConfig
from sparse_model.memory import keep_freed_memory
from sparse_model.model import SparseEncoder

INPUTS = ("numeric", "known", "categorical")


class ServedEncoder(PythonModel):
    """Arrays of B sequences in, predictions float32 [B, N, O] out: logits for events, values otherwise."""

    def load_context(self, context: Any) -> None:  # MLflow hands it over by this very name
        keep_freed_memory()
        config = ModelConfig.from_dict(json.loads(Path(context.artifacts["config"]).read_text()))
        self.model = SparseEncoder(config)
        self.model.load_state_dict(load_file(context.artifacts["weights"]))
        self.model.eval()
        self.is_dense: bool = context.model_config["budget"] == 0

    # No type on model_input: MLflow would take it for a schema and warn that it cannot read it.
    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None) -> Any:
        """`model_input`: numeric and known float32 [B, N, F], categorical int64 [B, N, C].

        params: `budget`, the largest share of key blocks to read, in (0, 1]; 0 is dense attention. A model
        that was trained dense has not learned to choose blocks: it reads all of them whatever the budget.
        Raises MlflowException (HTTP 400), naming the input and the fix.
        """
        numeric, known, codes = arrays = [np.array(model_input[name]) for name in INPUTS]
        for problem in _problems(numeric, known, codes, self.model.config.cardinalities):
            raise MlflowException.invalid_parameter_value(problem)
        budget = _budget((params or {}).get("budget", 0.0))
        with torch.inference_mode():
            outputs = self.model(*map(torch.from_numpy, arrays), None if self.is_dense else budget)
        return outputs.numpy()


def _budget(share: float) -> Budget | None:
    try:
        return Budget(share) if share else None
    except ValueError as error:
        raise MlflowException.invalid_parameter_value(f"{error}; 0 is dense attention") from None


def _problems(
    numeric: NDArray[np.float32], known: NDArray[np.float32], codes: NDArray[np.int64], sizes: tuple[int, ...]
) -> Any:
    """What is wrong with the inputs, beyond the types and widths that the signature checks."""
    if not numeric.shape[0] or not numeric.shape[1]:
        yield "numeric: at least one sequence of at least one step is needed"
    if known.shape != numeric.shape or codes.shape[:2] != numeric.shape[:2]:
        shapes = f"{list(numeric.shape)}, {list(known.shape)}, {list(codes.shape)}"
        yield f"numeric, known, categorical: {shapes} do not belong to the same sequences and steps"
    if not np.isfinite(numeric).all():
        yield "numeric: holds NaN or infinity; give 0 there and set known to 0"
    if not np.isin(known, (0.0, 1.0)).all():
        yield "known: holds something else than 0 and 1"
    for column, size in enumerate(sizes):
        if codes[..., column].size and not (0 <= codes[..., column].min() <= codes[..., column].max() < size):
            yield f"categorical: codes of column {column} must lie in 0..{size - 1}"


set_model(ServedEncoder())
