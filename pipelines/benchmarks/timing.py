"""How everything here is timed: on the device, after warm-up, as a median."""

import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch


def median_ms(work: Callable[[], Any], repeats: int = 20, warm_up: int = 3) -> float:
    """Median device time of `work` in milliseconds; the time the host needs to launch it is not in it."""
    for _ in range(warm_up):
        work()
    return statistics.median(_event_ms(work) for _ in range(repeats))


def _event_ms(work: Callable[[], Any]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # about 3 ms: launches queue up behind it, so that the device's time is measured; a training step takes
    # the host more than 1 ms
    torch.cuda._sleep(6_000_000)
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def environment() -> dict[str, str]:
    """Hardware, versions and date, so that a number can be compared with another."""
    import triton  # pyright: ignore[reportMissingImports]

    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
