"""A fresh process that holds one model and times it on request (started by pipelines.cost).

First argument: JSON with folder (weights and config), density (null: dense), num_steps, threads, device.
Protocol: prints {"ready": true} once warm; for every line "N" on standard input runs N inferences and
prints {"latency_ms": [...], "memory_bytes": [peak]}. Memory is what a machine must have: the peak of the
whole process, interpreter, libraries and model included.
"""

import json
import sys
import time
from pathlib import Path

import torch

from pipelines.process_memory import peak_bytes
from sparse_model.config import Budget, ModelConfig
from sparse_model.memory import keep_freed_memory
from sparse_model.model import SparseEncoder

_WARM_STEPS = 4096
"""Steps that warm the process up: libraries, threads and caches need no more of a long sequence."""


def main() -> None:
    """Serve timing requests until standard input closes."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    keep_freed_memory()
    device = torch.device(request["device"])
    model, inputs = _load(Path(request["folder"]), request["num_steps"], device)
    budget = Budget(request["density"]) if request["density"] is not None else None
    with torch.inference_mode():
        model(*(column[:, :_WARM_STEPS] for column in inputs), budget)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            print(json.dumps(_measure(model, inputs, budget, int(line), device)), flush=True)


def _load(folder: Path, num_steps: int, device: torch.device) -> tuple[SparseEncoder, list[torch.Tensor]]:
    """The model and random inputs of its shape: neither path's time depends on the values."""
    from safetensors.torch import load_file

    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    model = SparseEncoder(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    torch.manual_seed(0)
    numeric = torch.randn(1, num_steps, config.num_numeric)
    columns = [torch.randint(size, (1, num_steps)) for size in config.cardinalities]
    categorical = torch.stack(columns, -1) if columns else torch.zeros(1, num_steps, 0, dtype=torch.long)
    return model.to(device).eval(), [t.to(device) for t in (numeric, torch.ones_like(numeric), categorical)]


def _measure(
    model: SparseEncoder,
    inputs: list[torch.Tensor],
    budget: Budget | None,
    repeats: int,
    device: torch.device,
) -> dict[str, list[float]]:
    latency = []
    for _ in range(repeats):
        started = time.perf_counter()
        model(*inputs, budget)
        if device.type == "cuda":
            torch.cuda.synchronize()
        latency.append((time.perf_counter() - started) * 1e3)
    return {"latency_ms": latency, "memory_bytes": [_peak_bytes(device)]}


def _peak_bytes(device: torch.device) -> int:
    """Largest memory so far: of the whole process on a CPU, allocated on the device on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_bytes()


if __name__ == "__main__":
    main()
