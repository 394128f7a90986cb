"""Running the detector over streams: what it says of real batches, and of the same with a shift planted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.benchmarks.drift.planted import Plant, outcome_plants, plants
from pipelines.benchmarks.drift.streams import Columns, Stream
from validation.drift import DriftPolicy, detect_drift, noted
from validation.effects import Effect, is_numeric
from validation.record import Record
from validation.relations import evenly

WITHIN = 3  # batches in which a shift is to be found
_COLUMNS = 3  # of a stream into which shifts are planted, evenly picked among those that move
_STARTS = 2  # batches at which they begin, evenly spread


@dataclass(frozen=True)
class Look:
    """What was measured of one batch; decisions follow from it for any policy."""

    effects: tuple[Effect, ...]
    num_rows: tuple[int, int]
    faults: tuple[str, ...]
    """Subjects of the data faults."""


@dataclass(frozen=True)
class Planted:
    """One shift planted at one batch of one stream."""

    stream: str
    plant: Plant
    start: int
    before: tuple[Look, ...]
    """Of the real batches just before."""
    looks: tuple[Look, ...]
    """Of the batches from `start` on, with the shift."""
    real: tuple[Look, ...]
    """Of the same batches without it."""


class Found(Record):
    """What became of one planted shift. `delay` counts batches, 1 for the first; None: not found in time."""

    stream: str
    kind: str
    column: str
    start: int
    delay: int | None
    is_fault: bool
    """Whether it is one that was planted."""
    called_fault: bool
    is_testable: bool = True
    """False where the same alarm rings without the shift."""


def look(stream: Stream, number: int, rows: Columns) -> Look:
    baseline = stream.baseline(number)
    faults = stream.habits.faults(rows, {name: rows[name] for name in stream.sites})
    num_rows = (len(next(iter(stream.reference.values()))), len(next(iter(rows.values()))))
    return Look(tuple(baseline.compare(rows)), num_rows, tuple(fault.subject for fault in faults))


def real_looks(stream: Stream) -> dict[int, Look]:
    return {number: look(stream, number, stream.rows(number)) for number in stream.batches}


def planted(stream: Stream, real: dict[int, Look]) -> Iterator[Planted]:
    """Every shift, at some batches, in some columns."""
    chosen = [plant for column in _moving(stream) for plant in plants(stream, column)] + outcome_plants(
        stream
    )
    for plant in chosen:
        span = WITHIN + plant.since
        starts = stream.batches[2 : len(stream.batches) - span + 1] or stream.batches[:1]
        for start in evenly(np.array(starts), _STARTS).tolist():
            numbers = [number for number in range(start, start + span) if number in real]
            random = np.random.default_rng((start, len(plant.column)))
            looks = tuple(
                look(stream, number, plant.change(stream.rows(number), number - start, random))
                for number in numbers
            )
            before = tuple(real[number] for number in (start - 2, start - 1) if number in real)
            yield Planted(stream.name, plant, start, before, looks, tuple(real[each] for each in numbers))


def _moving(stream: Stream) -> list[str]:
    """Columns of the reference that are more than a constant with exceptions."""
    names = [
        name
        for name, values in stream.reference.items()
        if is_numeric(values) and name != stream.outcome and _moves(values)
    ]
    return evenly(np.array(names), _COLUMNS).tolist()


def _moves(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 0 and float(np.quantile(known, 0.9) - np.quantile(known, 0.1)) > 0


# Deciding -----------------------------------------------------------------------------------------


def alarms(stream: Stream, real: dict[int, Look], policy: DriftPolicy) -> dict[int, str]:
    """Every batch that is called something but quiet, and what; however few rows it has."""
    called, said = {}, []
    policy = policy.model_copy(update={"min_rows": 1})
    for number in stream.batches:
        each = real[number]
        said.append(detect_drift(each.effects, each.num_rows, policy, earlier=said))
        if each.faults:
            called[number] = "fault"
        elif said[-1].decision != "none":
            called[number] = said[-1].decision
    return called


def find(case: Planted, policy: DriftPolicy) -> Found:
    """Whether, and when, the detector named what was planted; a planted fault has to be called one."""
    shifted = _named(case, case.looks, policy)
    unshifted = _named(case, case.real, policy)
    delays = [age + 1 - case.plant.since for age, named in enumerate(shifted) if named]
    in_time = [delay for delay in delays if delay <= WITHIN]
    return Found(
        stream=case.stream,
        kind=case.plant.kind,
        column=case.plant.column,
        start=case.start,
        delay=in_time[0] if in_time else None,
        is_fault=case.plant.is_fault,
        called_fault=any(each.faults for each in case.looks),
        is_testable=not (any(unshifted) or _is_known(case, policy)),
    )


def _is_known(case: Planted, policy: DriftPolicy) -> bool:
    """Whether the column was spoken of just before the shift began."""
    history = [each.effects for each in case.before]
    said = [noted(history[: end + 1], policy) for end in range(len(history))]
    return not case.plant.is_fault and any(
        effect.subject in case.plant.subjects for each in said for effect in each
    )


def _named(case: Planted, looks: Sequence[Look], policy: DriftPolicy) -> list[bool]:
    """Of every batch: whether one of the plant's subjects was named."""
    if case.plant.is_fault:
        return [any(_is_about(fault, case.plant) for fault in each.faults) for each in looks]
    history = [each.effects for each in (*case.before, *looks)]
    ends = range(len(case.before) + 1, len(history) + 1)
    named = [{effect.subject for effect in noted(history[:end], policy)} for end in ends]
    return [bool(case.plant.subjects & subjects) for subjects in named]


def _is_about(fault: str, plant: Plant) -> bool:
    return any(fault == subject or fault.startswith(f"{subject} of ") for subject in plant.subjects)
