"""What inference costs: latency and memory of dense and sparse side by side (what that saves: payback.py).

Both models live in fresh, warmed processes that take turns, so that a machine that speeds up or slows
down does so for both.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from pipelines.clock import now
from pipelines.fingerprint import ROOT
from pipelines.signing import without_secrets
from validation.errors import InputError
from validation.policy import Policy
from validation.record import Record
from validation.samples import ratio_interval
from validation.statistics import Interval

_TURN = 5  # inferences in a row before the other side's turn


class Subject(Record):
    """One side of a comparison: a model folder, and the share of blocks it reads (None: dense)."""

    name: str
    folder: str
    density: float | None = None


class Timings(Record):
    """One subject at one length, batch size 1: a latency per inference, a memory peak per process."""

    subject: str
    num_steps: int
    density: float | None
    latency_ms: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    device: str
    threads: int

    def latency_quantile(self, share: float) -> float:
        return float(np.quantile(self.latency_ms, share))


def worst_case(samples: Sequence[float] | np.ndarray, value: float | None = None) -> Interval:
    """The largest value seen (or a `value` known to be the worst), with the range of what was seen."""
    low, high = float(np.min(samples)), float(np.max(samples))
    value = high if value is None else value
    return Interval(value=value, low=low, high=max(value, high), n=len(samples))


class CostComparison(Record):
    """Candidate against dense at one length: ratios below 1 favour the candidate."""

    num_steps: int
    candidate: Timings
    dense: Timings
    latency_p50_ratio: Interval
    latency_p99_ratio: Interval
    peak_memory_ratio: Interval
    measured_at: str = ""


def compare_cost(
    candidate: Subject,
    dense: Subject,
    num_steps: int,
    *,
    repeats: int,
    processes: int,
    threads: int,
    policy: Policy,
    device: str = "cpu",
    after_round: Callable[[], None] = lambda: None,
) -> CostComparison:
    """Measure both sides at `num_steps` steps: `repeats` inferences in each of `processes` pairs."""
    started = now()
    ours, theirs = measure_turns(
        [candidate, dense], num_steps, repeats, processes, threads, device, after_round
    )
    return compare_timings(ours, theirs, policy, started)


def compare_timings(ours: Timings, theirs: Timings, policy: Policy, measured_at: str = "") -> CostComparison:
    """Both sides at one length, measured already."""

    def ratio(field: str, quantile: float) -> Interval:
        a, b = (np.array(getattr(timings, field), dtype=np.float64) for timings in (ours, theirs))
        how = {"confidence": policy.confidence, "num_resamples": policy.num_resamples, "seed": 0}
        return ratio_interval(a, b, quantile=quantile, **how)

    return CostComparison(
        num_steps=ours.num_steps,
        candidate=ours,
        dense=theirs,
        latency_p50_ratio=ratio("latency_ms", 0.5),
        latency_p99_ratio=ratio("latency_ms", 0.99),
        peak_memory_ratio=ratio("memory_bytes", 0.5),
        measured_at=measured_at,
    )


def measure_turns(
    subjects: Sequence[Subject],
    num_steps: int,
    repeats: int,
    processes: int,
    threads: int,
    device: str = "cpu",
    after_round: Callable[[], None] = lambda: None,
) -> list[Timings]:
    """Time the subjects in turns of a few inferences, each in its own fresh process, several times over.

    `after_round` is called each time that all of them were timed in one process each.
    """
    rounds = []
    for _ in range(processes):
        rounds.append(_measure_round(subjects, num_steps, repeats, threads, device))
        after_round()
    return [
        Timings(
            subject=subject.name,
            num_steps=num_steps,
            density=subject.density,
            latency_ms=tuple(value for round_ in rounds for value in round_[index]["latency_ms"]),
            memory_bytes=tuple(max(round_[index]["memory_bytes"]) for round_ in rounds),
            device=device,
            threads=threads,
        )
        for index, subject in enumerate(subjects)
    ]


def _measure_round(
    subjects: Sequence[Subject], num_steps: int, repeats: int, threads: int, device: str
) -> list[dict[str, list[float]]]:
    with ExitStack() as stack:
        # All are started before the first is waited for: they load side by side, and are timed in turns.
        probes = [stack.enter_context(_Probe(subject, num_steps, threads, device)) for subject in subjects]
        samples: list[dict[str, list[float]]] = [{"latency_ms": [], "memory_bytes": []} for _ in subjects]
        for probe in probes:
            probe.wait_until_warm()
        for done in range(0, repeats, _TURN):
            for probe, sample in zip(probes, samples, strict=True):
                for field, values in probe.ask(min(_TURN, repeats - done)).items():
                    sample[field].extend(values)
    return samples


class _Probe:
    """A process running pipelines.cost_probe."""

    def __init__(self, subject: Subject, num_steps: int, threads: int, device: str) -> None:
        request = {
            "folder": subject.folder,
            "density": subject.density,
            "num_steps": num_steps,
            "threads": threads,
            "device": device,
        }
        self.name = subject.name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cost_probe", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=without_secrets(os.environ),
        )

    def __enter__(self) -> "_Probe":
        return self

    def wait_until_warm(self) -> None:
        self._read()

    def ask(self, repeats: int) -> dict[str, list[float]]:
        """Run some inferences in the process; their times and memory peaks."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{repeats}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, list[float]]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, error = self.process.communicate()
            last = error.strip().splitlines()[-1] if error.strip() else "no message"
            raise InputError(f"{self.name}: its timing process died ({last}); see that it fits into memory")
        return json.loads(line)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
