"""What a device's journal says about its model: sums over periods, and whether the live model has to go.

Sums are made of records alone, so that they count every answer once, whatever was killed in between.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.edge.journal import Record

MAX_LATENCIES = 500
"""Of the newest windows; the 99th percentile's interval takes 368."""
DECILES = tuple(np.arange(0.1, 1.0, 0.1).round(1).tolist())
SHIFTED = 0.25
"""Population stability index from which on a distribution is commonly said to have moved."""
_TAIL = 0.025
_KINDS = 20
WINDOWS_OF_OBSERVATION = 100
BREACHES = 3


class Limits(NamedTuple):
    """What takes a live model back, in three observations in a row (`rollback` of the rollout policy)."""

    error_rate: float = 0.01
    latency_p99_ms: float = 2000.0
    peak_memory_bytes: float = float(1 << 30)


class Scored(NamedTuple):
    """One window that was scored."""

    ms: float
    density: float
    is_answered: bool
    """A finite number came back for every row asked."""


def summed(records: Iterable[Record], reference: Sequence[float] = ()) -> Record:
    """The sums of some records; `reference` are the deciles that scores are counted against."""
    total: Counter[str] = Counter()
    densities: Counter[str] = Counter()
    errors: list[str] = []
    first, last, memory, bundle, latencies = 0, 0, 0, "", deque[float](maxlen=MAX_LATENCIES)
    bins = np.zeros(len(reference) + 1, np.int64)
    for record in records:
        first, last = first or record["n"], record["n"]
        bundle, memory = record.get("bundle", bundle), max(memory, record.get("memory", 0))
        windows = [Scored(*window) for window in record.get("windows", [])]
        latencies.extend(window.ms for window in windows if window.is_answered)
        densities.update(f"{window.density:g}" for window in windows)
        total.update(lines=record.get("lines", 0), windows=len(windows))
        total.update(failed=sum(not window.is_answered for window in windows))
        scores = [value for answer in record.get("answers", []) for value in answer.get("scores", ())]
        total.update(scored=sum("scores" in answer for answer in record.get("answers", [])))
        errors += [answer["error"] for answer in record.get("answers", []) if "error" in answer]
        bins += np.bincount(np.searchsorted(reference, scores), minlength=len(bins))
    counts = {name: total[name] for name in ("lines", "scored", "windows", "failed")}
    return {
        **counts,
        "first": first,
        "last": last,
        "bundle": bundle,
        "errors": _kinds(errors),
        "densities": dict(densities),
        "latency_ms": [round(value, 3) for value in latencies],
        "memory_bytes": memory,
        "score_bins": bins.tolist(),
        "score_shift": stability(bins) if len(reference) else None,
    }


def merged(first: Record, second: Record) -> Record:
    """Two periods' sums as one: what is kept of the oldest when there are many."""
    comparable = len(first["score_bins"]) == len(second["score_bins"])
    added = {name: first[name] + second[name] for name in ("lines", "scored", "windows", "failed")}
    counters = {name: dict(Counter(first[name]) + Counter(second[name])) for name in ("errors", "densities")}
    bins = np.add(first["score_bins"], second["score_bins"]).tolist() if comparable else second["score_bins"]
    return {
        **second,
        **added,
        **counters,
        "first": first["first"],
        "latency_ms": [*first["latency_ms"], *second["latency_ms"]][-MAX_LATENCIES:],
        "memory_bytes": max(first["memory_bytes"], second["memory_bytes"]),
        "score_bins": bins,
        "score_shift": stability(np.array(bins)) if len(bins) > 1 else None,
    }


def stability(bins: np.ndarray) -> float:
    """Population stability index of counts [10] between the deciles of a reference, half a count added."""
    shares = (bins + 0.5) / (bins.sum() + 0.5 * len(bins))
    expected = 1 / len(bins)
    return round(float(np.sum((shares - expected) * np.log(shares / expected))), 4)


def deciles(scores: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(scores, DECILES)]


def _kinds(errors: Iterable[str]) -> dict[str, int]:
    """How many errors about each field (or none); the rarest of very many together."""
    counts = Counter(error.split(":")[0][:60] for error in errors).most_common()
    rest = sum(count for _, count in counts[_KINDS:])
    return dict(counts[:_KINDS]) | ({"others": rest} if rest else {})


class Watch:
    """Observations of 100 windows each; three in a row that break one bound take the model back.

    An observation breaks a bound as a window of the server's monitor does: when chance alone would put so
    many windows beyond it once in forty times at most (the exact binomial test, one-sided).
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._seen, self._broken = limits, [], Counter[str]()

    def add(self, window: Scored, memory_bytes: int) -> str:
        """Take in a window; why the model has to go, or ""."""
        self._seen.append((window, memory_bytes))
        if len(self._seen) < WINDOWS_OF_OBSERVATION:
            return ""
        broken = dict(self._breaks())
        self._broken = Counter({name: self._broken[name] + 1 for name in broken})
        self._seen = []
        final = [name for name, times in self._broken.items() if times >= BREACHES]
        return f"{broken[final[0]]}, in {BREACHES} observations in a row" if final else ""

    def _breaks(self) -> Iterable[tuple[str, str]]:
        limits, n = self._limits, len(self._seen)
        failed = sum(not window.is_answered for window, _ in self._seen)
        slow = sum(window.ms > limits.latency_p99_ms for window, _ in self._seen)
        memory = min(memory for _, memory in self._seen)
        if is_above(failed, n, limits.error_rate):
            yield "error_rate", f"{failed} of {n} windows without an answer, {limits.error_rate:g} is allowed"
        if is_above(slow, n, 0.01):
            yield "latency", f"{slow} of {n} windows took over {limits.latency_p99_ms:g} ms, 1% may"
        if memory > limits.peak_memory_bytes:
            yield "memory", f"{memory} bytes of memory, {limits.peak_memory_bytes:.0f} are allowed"


def is_above(hits: int, n: int, share: float) -> bool:
    """Whether `hits` of `n` are more than a true share of at most `share` would bring once in forty times."""
    below = sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits))
    return hits > 0 and 1 - below <= _TAIL
