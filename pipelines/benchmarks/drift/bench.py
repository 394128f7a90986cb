"""`dankai bench drift`: false alarms a month and delay to detection, over real series and planted shifts.

Every threshold of the policy is tried on the streams that choose; the report is of the policy's own, on other
streams. An alarm is any decision but "none". A planted shift counts as found when an alarm names what was
planted, within three batches.
"""

import json
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby, product
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from pipelines.benchmarks.attention import table
from pipelines.benchmarks.drift.alarm import WITHIN, Found, Look, Planted, alarms, find, planted, real_looks
from pipelines.benchmarks.drift.streams import Stream, streams
from pipelines.files import replace_file
from pipelines.fingerprint import environment
from validation.drift import DriftPolicy

Row = dict[str, Any]
MULTIPLES = (2.25, 4.0, 6.0, 8.0)
SIGNED_MULTIPLES = (4.0, 5.0, 6.0, 8.0)
FARS = (3.0, 5.0)
HALF = 0.5  # standard deviations: as far as the smallest planted level
MOST_FALSE = 1 / 6  # alarms per quiet batch


class Measured:
    """Everything measured on streams; decisions follow for any policy in milliseconds."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.real: list[dict[int, Look]] = []
        self.cases: list[Planted] = []

    def add(self, stream: Stream) -> None:
        real = real_looks(stream)
        self.streams.append(stream)
        self.real.append(real)
        self.cases += planted(stream, real)

    def false_alarms(self, policy: DriftPolicy) -> list[Row]:
        """A row for every stream: alarms in quiet batches, and in those where something labelled happened."""
        return [
            _false_alarms(stream, real, policy) for stream, real in zip(self.streams, self.real, strict=True)
        ]

    def found(self, policy: DriftPolicy) -> list[Found]:
        return [find(case, policy) for case in self.cases]


def _false_alarms(stream: Stream, real: dict[int, Look], policy: DriftPolicy) -> Row:
    called = alarms(stream, real, policy)
    quiet = [number for number in stream.batches if number not in stream.disturbed]
    false = [called[number] for number in quiet if number in called]
    return {
        "stream": stream.name,
        "quiet": len(quiet),
        "alarms": len(false),
        "retrain": false.count("retrain"),
        "fault": false.count("fault"),
        "a_month": round(len(false) / len(quiet) * stream.per_month, 2) if quiet else None,
        "disturbed": len(stream.disturbed),
        "alarms_there": sum(number in called for number in stream.disturbed),
    }


def by_kind(found: Iterable[Found]) -> list[Row]:
    """Of every kind of shift: how many were found in time, and after how many batches."""
    ranked = sorted(found, key=lambda each: each.kind)
    return [_of_kind(kind, list(group)) for kind, group in groupby(ranked, key=lambda each: each.kind)]


def _of_kind(kind: str, cases: list[Found]) -> Row:
    testable = [case for case in cases if case.is_testable]
    delays = [case.delay for case in testable if case.delay is not None]
    return {
        "kind": kind,
        "planted": len(cases),
        "already_alarming": len(cases) - len(testable),
        "found": len(delays),
        "of": len(testable),
        "median_delay": median(delays) if delays else None,
        "called_fault": sum(case.called_fault for case in testable),
    }


def grid(measured: Measured, policy: DriftPolicy) -> list[Row]:
    """What other thresholds would do on these streams."""
    rows = []
    for multiple, signed, far in product(MULTIPLES, SIGNED_MULTIPLES, FARS):
        thresholds = {"usual_multiple": multiple, "signed_multiple": signed, "far": far}
        rows.append({**thresholds, **_rates(measured, policy.model_copy(update=thresholds))})
    return rows


def natural(measured: Measured) -> list[Row]:
    """Of every stream: how many numeric columns are half a standard deviation away in a tenth of the quiet
    batches, with nothing planted; by themselves (shift), and in what the others leave unsaid (level)."""
    return [
        {"stream": stream.name, **_natural(stream, real)}
        for stream, real in zip(measured.streams, measured.real, strict=True)
        if set(stream.batches) - stream.disturbed
    ]


def _natural(stream: Stream, real: dict[int, Look]) -> Row:
    found: dict[str, dict[str, list[float]]] = {"shift": {}, "level": {}}
    for number in set(stream.batches) - stream.disturbed:
        for effect in real[number].effects:
            if effect.measure in found:
                found[effect.measure].setdefault(effect.subject, []).append(abs(effect.value))
    return {"columns": len(found["shift"])} | {
        f"{name}_moves_by_half": sum(float(np.quantile(each, 0.9)) > HALF for each in columns.values())
        for name, columns in found.items()
    }


def _rates(measured: Measured, policy: DriftPolicy) -> Row:
    """Shares, each stream and kind counting alike: there are five machines and one transformer."""
    false = [row["alarms"] / row["quiet"] for row in measured.false_alarms(policy) if row["quiet"]]
    drift = [case for case in measured.found(policy) if case.is_testable and not case.is_fault]
    return {
        "false_per_batch": round(mean(false), 3),
        "found": round(mean(row["found"] / row["of"] for row in by_kind(drift)), 3),
    }


def best(rows: list[Row]) -> Row | None:
    """The thresholds that find most, of those with few enough false alarms."""
    quiet = [row for row in rows if row["false_per_batch"] <= MOST_FALSE]
    return max(quiet, key=lambda row: (row["found"], -row["false_per_batch"]), default=None)


def main(folder: Path, policy: DriftPolicy) -> Row:
    """Measure stream after stream and print the tables; drift.json in `folder` grows with them."""
    started, reported, tried = time.monotonic(), Measured(), Measured()
    result: Row = {}
    for stream in streams("report"):
        reported.add(stream)
        result = _result(reported, policy, time.monotonic() - started)
        replace_file(folder / "drift.json", json.dumps(result, indent=1).encode() + b"\n")
        print(table(result["false_alarms"][-1:]), flush=True)
    print(table(result["planted"]), flush=True)
    result["natural"] = natural(reported)
    print(table(result["natural"]), flush=True)
    for stream in streams("choose"):
        tried.add(stream)
    rows = grid(tried, policy)
    result |= {"tried": rows, "best": best(rows), "seconds": round(time.monotonic() - started)}
    replace_file(folder / "drift.json", json.dumps(result, indent=1).encode() + b"\n")
    print(f"best of {len(rows)} thresholds on the streams that choose: {result['best']}")
    return result


def _result(measured: Measured, policy: DriftPolicy, seconds: float) -> Row:
    found = measured.found(policy)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "environment": environment().model_dump(),
        "seconds": round(seconds),
        "policy": policy.model_dump(),
        "within": WITHIN,
        "false_alarms": measured.false_alarms(policy),
        "planted": by_kind(found),
        "by_stream": list(_by_stream(found)),
        "cases": [each.model_dump() for each in found],
    }


def _by_stream(found: list[Found]) -> Iterator[Row]:
    ranked = sorted(found, key=lambda each: each.stream)
    for stream, group in groupby(ranked, key=lambda each: each.stream):
        for row in by_kind(group):
            yield {"stream": stream, **row}
