"""The code inside a registered model (MLflow's "models from code"): never imported by dankai itself.

MLflow copies this file and the sparse_model package into the model and runs it where the model is served,
so it needs mlflow, torch, safetensors and numpy there, and reads weights from safetensors: no pickle.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from safetensors.torch import load_file

from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder


class ServedEncoder(PythonModel):
    """Arrays of B sequences in, predictions float32 [B, N, O] out: logits for events, values otherwise."""

    def load_context(self, context: Any) -> None:  # MLflow hands it over by this very name
        config = ModelConfig.from_dict(json.loads(Path(context.artifacts["config"]).read_text()))
        self.model = SparseEncoder(config)
        self.model.load_state_dict(load_file(context.artifacts["weights"]))
        self.model.eval()

    # No type on model_input: MLflow would take it for a schema and warn that it cannot read it.
    def predict(self, context: Any, model_input, params: dict[str, Any] | None = None) -> Any:
        """`model_input`: numeric and known float32 [B, N, F], categorical int64 [B, N, C].

        params: `density`, the share of key blocks to read in (0, 1]; 0 is dense attention.
        """
        density = (params or {}).get("density", 0.0)
        arrays = (np.array(model_input[name]) for name in ("numeric", "known", "categorical"))
        with torch.inference_mode():
            outputs = self.model(*map(torch.from_numpy, arrays), Budget(density) if density else None)
        return outputs.numpy()


set_model(ServedEncoder())
