"""Which budget keeps a promise of latency or memory on this very device.

The bundle's calibration table says what each budget cost where it was measured. It is believed at first;
then what is measured here corrects it: if windows take twice what the table says, every budget is taken to.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from validation.errors import InputError

_WINDOWS = 64
_NEEDED = 20
"""Windows at one budget before its latency is believed."""
_HEADROOM = 0.9
"""A larger budget is taken only where it is expected to stay this far below the target: no to and fro."""


class Point(NamedTuple):
    """What the table says of one budget: the pessimistic ends."""

    density: float
    latency_p90_ms: float
    memory_bytes: float


class Target(NamedTuple):
    """What was promised; None where nothing was. Latency is the 90th percentile over windows."""

    latency_ms: float | None = None
    memory_bytes: float | None = None


class Governor:
    """Chooses the density of the next window."""

    def __init__(self, manifest: Mapping[str, Any], target: Target) -> None:
        """Raises InputError where a target is given and the bundle has no table."""
        self._target, self._points = target, table_of(manifest)
        self._highest = len(self._points) - 1
        self._latencies: deque[float] = deque(maxlen=_WINDOWS)
        self.density: float = manifest["density"]
        self.note = ""
        """What a person should know: the target cannot be kept."""
        if target == Target():
            self._points = []
        elif not self._points:
            raise InputError(
                "bundle: holds no calibration table, so no budget can be chosen; leave targets out"
            )
        else:
            self._start()

    def seen(self, latency_ms: float, memory_bytes: int) -> bool:
        """Take in one window. True where the budget fell for memory's sake: load again to give it back."""
        self._latencies.append(latency_ms)
        if not self._points:
            return False
        if self._target.memory_bytes is not None and memory_bytes > self._target.memory_bytes:
            return self._shrink(memory_bytes)
        if self._target.latency_ms is not None and len(self._latencies) >= _NEEDED:
            self._follow(self._target.latency_ms)
        return False

    def _start(self) -> None:
        fitting = [place for place, point in enumerate(self._points) if self._fits(point)]
        self._take(max(fitting, default=0))
        if not fitting:
            self.note = "the table says that no budget keeps the target; the smallest is tried"

    def _fits(self, point: Point) -> bool:
        latency, memory = self._target
        in_time = latency is None or point.latency_p90_ms <= latency
        return in_time and (memory is None or point.memory_bytes <= memory)

    def _follow(self, target_ms: float) -> None:
        # One that was measured: between windows before and after a change lies a latency that no window has.
        measured = float(np.quantile(self._latencies, 0.9, method="higher"))
        scale = measured / self._points[self._place].latency_p90_ms
        expected = [point.latency_p90_ms * scale for point in self._points]
        kept = [place for place, ms in enumerate(expected) if ms <= target_ms]
        place = min(max(kept, default=0), self._highest)
        if place > self._place:
            roomy = [each for each in kept if expected[each] <= _HEADROOM * target_ms]
            place = max(self._place, min(max(roomy, default=0), self._highest))
        missed = place == 0 and expected[0] > target_ms
        self.note = f"latency {measured:.3g} ms: no budget keeps {target_ms:g} ms" if missed else ""
        if place != self._place:
            self._take(place)

    def _shrink(self, memory_bytes: int) -> bool:
        if self._place == 0:
            self.note = f"memory {memory_bytes >> 20} MiB: no budget keeps the target"
            return False
        self._highest = self._place - 1
        self._take(self._highest)
        return True

    def _take(self, place: int) -> None:
        self._place, self.density = place, self._points[place].density
        self._latencies.clear()


def table_of(manifest: Mapping[str, Any]) -> list[Point]:
    """The manifest's calibration table, in ascending order of density; what was not measured is infinite."""
    points = [
        Point(
            float(point["density"]),
            _pessimistic(point["cost"]["latency_p90_ms"]),
            _pessimistic(point["cost"]["peak_memory_bytes"]),
        )
        for point in manifest.get("budgets", [])
    ]
    return sorted(points)


def _pessimistic(interval: Mapping[str, Any]) -> float:
    """Its upper end, else its value."""
    for name in ("high", "value"):
        number = float(interval[name])
        if np.isfinite(number):
            return number
    return float("inf")
