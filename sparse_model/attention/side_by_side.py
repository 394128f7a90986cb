"""Independent parts of a computation on the CPU, each on a thread of its own.

PyTorch splits every single operation over its threads and waits for all of them after each. Where operations
are many and small that costs more than it gains: whole parts side by side wait once.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


def side_by_side(work: Callable[[Part], Tensor], parts: Sequence[Part], device: torch.device) -> list[Tensor]:
    """`work` of every part, in order; one after another under a gradient, a compiler or on another device."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or device.type != "cpu":
        return [work(part) for part in parts]
    if torch.get_num_threads() < 2 or len(parts) < 2:
        return [work(part) for part in parts]
    is_inference = torch.is_inference_mode_enabled()

    def alone(part: Part) -> Tensor:
        with torch.inference_mode(is_inference), torch.no_grad():  # both are a thread's own
            return work(part)

    return list(_pool(torch.get_num_threads()).map(alone, parts))


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operations take one thread each; the caller's own keep all of theirs."""
    ready = Barrier(threads + 1)

    def settle() -> None:
        torch.set_num_threads(1)
        torch.zeros(1 << 17).add_(1)  # a thread takes the number over with its first parallel operation
        ready.wait()

    pool = ThreadPoolExecutor(threads, "attention", settle)
    for _ in range(threads):
        pool.submit(int)  # a thread is started for each piece of work while there are too few
    ready.wait()
    torch.set_num_threads(threads)  # setting it in a thread set it for those to come, too
    return pool
