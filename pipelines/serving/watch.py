"""What the live model made of its requests, counted in windows that the monitor can judge.

A request that the model found wrong (status 4xx) is its caller's affair and is not counted: otherwise anybody
who can send nonsense could take a model back. It counts as failed where the model refuses even a request that
was answered before, by it or by another model of the dataset (router.py): then the model is what is broken.
"""

import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from pipelines.monitoring import Observation
from pipelines.registry import ModelVersion
from validation.kpis import Kpi, kpi
from validation.samples import quantile_interval, share_interval

WINDOW = 400
"""Requests of one window: a 99th percentile has distribution-free 95% limits from about 370 on."""
_UNTOLD = 100
"""Windows that wait to be told; where nobody asks for them, the oldest go."""


@dataclass(frozen=True)
class Seen:
    """One request that the live model had to answer."""

    failed: bool
    """No usable answer: none at all, NaN, a wrong shape, a status of 5xx, or a refusal by a broken model."""
    seconds: float | None
    """None where it gave no answer."""


@dataclass(frozen=True)
class Window:
    """Requests in a row, named after the time of the last one, so that windows sort by name."""

    name: str
    seen: tuple[Seen, ...]


class Watch:
    """Takes requests in from any number of threads; full windows lie in `closed`, oldest first."""

    def __init__(self, size: int = WINDOW) -> None:
        self.closed: deque[Window] = deque(maxlen=_UNTOLD)
        self._size = size
        self._turn = threading.Lock()
        self._seen: list[Seen] = []

    def add(self, seen: Seen) -> None:
        with self._turn:
            self._seen.append(seen)
            if len(self._seen) >= self._size:
                ended = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
                self.closed.append(Window(ended, tuple(self._seen)))
                self._seen = []


def observation_of(window: Window, live: ModelVersion, confidence: float) -> Observation:
    """Error rate and latency (`error_rate`, `latency_p99_ms`) of the live model in a window."""
    return Observation(
        window=window.name, checkpoint=live.checkpoint, kpis=tuple(_kpis(window.seen, live, confidence))
    )


def _kpis(seen: tuple[Seen, ...], live: ModelVersion, confidence: float) -> list[Kpi]:
    num_failed = sum(each.failed for each in seen)
    measured = {"error_rate": share_interval(num_failed, len(seen), confidence=confidence)}
    timings = np.array([1000 * each.seconds for each in seen if each.seconds is not None])
    if len(timings):
        measured["latency_p99_ms"] = quantile_interval(timings, 0.99, confidence=confidence)
    return [
        kpi(name, value, checkpoint=live.checkpoint, snapshot=live.snapshot)
        for name, value in measured.items()
    ]
