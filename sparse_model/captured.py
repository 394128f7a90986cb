"""Inference on inputs of one shape, recorded once and replayed: for short sequences a GPU waits for its host.

Shape suffixes: B batch, N steps, F numeric columns, C categorical columns, O outputs.
"""

import torch
from torch import Tensor

from sparse_model.config import Budget
from sparse_model.model import SparseEncoder


class Captured:
    """A model's forward pass as one CUDA graph, for one shape and one budget.

    It holds the memory of its forward pass, and reads the weights where they lay when it was made: change
    them in place or make another.
    """

    def __init__(
        self,
        model: SparseEncoder,
        numeric_BNF: Tensor,
        known_BNF: Tensor,
        categorical_BNC: Tensor,
        budget: Budget | None,
    ) -> None:
        """Record the pass; the tensors give shapes, dtypes and device. Raises ValueError without a GPU."""
        if not numeric_BNF.is_cuda:
            raise ValueError(f"numeric: must be on a CUDA device to be recorded, not on {numeric_BNF.device}")
        self._inputs = [tensor.clone() for tensor in (numeric_BNF, known_BNF, categorical_BNC)]
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # kernels are compiled and chosen before the recording
                model(*self._inputs, budget)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph):
                self._outputs_BNO = model(*self._inputs, budget)

    def __call__(self, numeric_BNF: Tensor, known_BNF: Tensor, categorical_BNC: Tensor) -> Tensor:
        """Outputs [B, N, O] for inputs of the recorded shapes. Raises ValueError for others."""
        given = (numeric_BNF, known_BNF, categorical_BNC)
        for name, own, tensor in zip(("numeric", "known", "categorical"), self._inputs, given, strict=True):
            if own.shape != tensor.shape:
                raise ValueError(f"{name}: recorded for {tuple(own.shape)}, got {tuple(tensor.shape)}")
            own.copy_(tensor)
        self._graph.replay()
        return self._outputs_BNO.clone()
