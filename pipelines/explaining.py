"""Why did it look there: a window's reading in the words of the table, and what was missed, by slice."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.data.windows import WindowBatch, Windows
from pipelines.evaluation import resampling
from pipelines.panel import groups_at_once
from pipelines.scoring import Report
from validation.errors import unknown_name
from validation.kpis import Kpi, kpi
from validation.policy import Policy
from validation.record import Record
from validation.relations import evenly
from validation.statistics import METRICS, Floats, Scored, interval

if TYPE_CHECKING:
    import torch

    from sparse_model.model import SparseEncoder

_AUDITED_WINDOWS = 64
_AUDITED_STEPS = (
    128  # of a window's asked steps, evenly spread: a dense row costs as much as the window is long
)

Value = float | int | str | None
"""Of a column at a step; None where the model did not know it."""


class ReadStep(Record):
    """A step that was read exactly, as the model saw it."""

    time: str
    entity: str
    row: int
    """Of the snapshot's table."""
    mass: float
    """Share of the attention, mean over asked steps, layers and heads."""
    values: dict[str, Value]


class ReadBlock(Record):
    """Consecutive steps that were read together."""

    first: str
    last: str
    mass: float
    """Share of the attention on its steps and, in layers and heads that read it so, on its summary."""
    read_by: float
    """Share of layers and heads that read it step by step; the others read its summary."""


class AskedBlock(Record):
    """What the asked steps of one query block read."""

    first: str
    last: str
    num_asked: int
    exact_mass: float
    """Share of the attention that went to steps; the rest went to summaries."""
    steps: tuple[ReadStep, ...]
    """Those with the most mass, first."""
    blocks: tuple[ReadBlock, ...]
    """Every block that some layer and head read step by step, most mass first."""
    only_summarized: tuple[ReadBlock, ...]
    """Every other block, most mass first."""


class Explanation(Record):
    """Where a model looked in one window."""

    checkpoint: str
    snapshot: str
    density: float
    entity: str
    cutoff: str
    """The last instant the model may see."""
    blocks: tuple[AskedBlock, ...]
    """One for every query block with steps that were asked, in order of time."""


def cutoff_at(windows: Windows, when: datetime, entity: str | None = None) -> int:
    """The cutoff of the window that has seen every row up to `when`.

    `entity` may be left out where there is one. Raises InputError that says what there is.
    """
    start, end = _rows_of(windows, entity)
    instant = int(np.datetime64(when.replace(tzinfo=None), "us").astype(np.int64))
    cutoff = start + int(np.searchsorted(windows.time_us[start:end], instant, side="right"))
    first, last = start + windows.lookback, end - windows.horizon
    if not first <= cutoff <= last:
        possible = (
            f"from {_time(windows, first - 1)} to {_time(windows, last - 1)}" if first <= last else "none"
        )
        raise windows.spec.refuse(
            "window", f"no window ends at {when.isoformat(' ')}: possible are {possible}"
        )
    return cutoff


def _rows_of(windows: Windows, entity: str | None) -> tuple[int, int]:
    """First row of an entity, and the row after its last."""
    names = [str(name) for name in windows.column("entity")[windows.offsets[:-1]]]
    if entity is None and len(names) > 1:
        raise windows.spec.refuse("entity", f"name one of {', '.join(names)}")
    if entity is not None and entity not in names:
        raise windows.spec.refuse("entity", unknown_name("entity", entity, names))
    number = names.index(entity) if entity else 0
    return int(windows.offsets[number]), int(windows.offsets[number + 1])


def explain_window(
    checkpoint: Checkpoint,
    windows: Windows,
    cutoff: int,
    density: float,
    num_steps: int = 5,
    most_blocks: int | None = None,
) -> Explanation:
    """What every query block with asked steps read in the window at `cutoff`; its `num_steps` main steps.

    With `most_blocks` only so many of the query blocks, evenly spread.
    """
    model, batch = load_model(checkpoint), windows.batch(np.array([cutoff]))
    size = model.config.block_size
    (asked,) = np.nonzero(batch.target_mask[0].max(-1))
    numbers = np.unique(asked // size)
    if most_blocks is not None:
        numbers = evenly(numbers, most_blocks)
    blocks = [asked[asked // size == number] for number in numbers]
    return Explanation(
        checkpoint=checkpoint.sha256,
        snapshot=windows.snapshot.content_hash,
        density=density,
        entity=str(windows.column("entity")[batch.rows[0, 0]]),
        cutoff=_iso(batch.cutoff_us[0]),
        blocks=tuple(_asked_block(model, windows, batch, density, num_steps, steps) for steps in blocks),
    )


def _asked_block(
    model: "SparseEncoder",
    windows: Windows,
    batch: WindowBatch,
    density: float,
    num_steps: int,
    asked: NDArray[np.int64],
) -> AskedBlock:
    import torch

    from sparse_model.config import Budget
    from sparse_model.explanation import explain

    reading = explain(model, *to_inputs(batch), Budget(density), torch.from_numpy(asked))
    steps_N, summaries_J, read_by_J = (_mean(part) for part in reading)
    blocks = _read_blocks(windows, batch, steps_N, summaries_J, read_by_J, model.config.block_size)
    main = np.argsort(-steps_N, kind="stable")[:num_steps]
    return AskedBlock(
        first=_time(windows, batch.rows[0, asked[0]]),
        last=_time(windows, batch.rows[0, asked[-1]]),
        num_asked=len(asked),
        exact_mass=float(steps_N.sum()),
        steps=tuple(_read_step(windows, batch, step, float(steps_N[step])) for step in main if steps_N[step]),
        blocks=tuple(block for block in blocks if block.read_by > 0),
        only_summarized=tuple(block for block in blocks if block.read_by == 0),
    )


def _mean(part_BLHPX: "torch.Tensor") -> NDArray[np.float32]:
    """Over sequences, layers, heads and asked steps."""
    return part_BLHPX.float().mean((0, 1, 2, 3)).numpy()


def _read_blocks(
    windows: Windows,
    batch: WindowBatch,
    steps_N: NDArray[np.float32],
    summaries_J: NDArray[np.float32],
    read_by_J: NDArray[np.float32],
    size: int,
) -> list[ReadBlock]:
    """Every key block, most mass first."""
    starts = np.arange(len(summaries_J)) * size
    mass_J, rows = np.add.reduceat(steps_N, starts) + summaries_J, batch.rows[0]
    return [
        ReadBlock(
            first=_time(windows, rows[starts[number]]),
            last=_time(windows, rows[starts[number] : starts[number] + size][-1]),
            mass=float(mass_J[number]),
            read_by=float(read_by_J[number]),
        )
        for number in np.argsort(-mass_J, kind="stable")
    ]


def _read_step(windows: Windows, batch: WindowBatch, step: int, mass: float) -> ReadStep:
    """A step with its columns' values in the table's own units; what the model did not know is None."""
    row, spec = batch.rows[0, step], windows.spec
    numeric = [
        *spec.numeric,
        *([windows.preprocessing.past_target] if windows.preprocessing.past_target else []),
    ]
    is_known = {name: batch.known[0, step, windows.numeric_names.index(name)] > 0 for name in numeric}
    is_known |= {
        name: code > 0 for name, code in zip(spec.categorical, batch.categorical[0, step], strict=True)
    }
    values = {name: windows.table[name][int(row)] if known else None for name, known in is_known.items()}
    entity = str(windows.table["entity"][int(row)])
    return ReadStep(time=_time(windows, row), entity=entity, row=int(row), mass=mass, values=values)


def missed_mass_kpis(
    checkpoint: Checkpoint,
    windows: Windows,
    part: str,
    density: float,
    policy: Policy,
    report: Report = lambda *_: None,
) -> list[Kpi]:
    """Dense attention's mass that sparse reading missed, over all asked steps and in every group of a slice.

    Two KPIs each: `missed_mass`, which neither exact reading nor summaries carry, and `unread_mass`, which
    was left to summaries. Dense rows of some evenly spread steps are run in some evenly spread windows of
    `part`; means over layers and heads, with block-bootstrap intervals over windows and, for the groups, a
    band that holds for all of them at once.
    """
    audited = _audit(checkpoint, windows, part, density, report)
    how = resampling(policy, windows.spec, len(audited.mask))
    measured = partial(kpi, checkpoint=checkpoint.sha256, snapshot=windows.snapshot.content_hash)
    kpis, groups = [], audited.groups()
    for name, mass in (("missed_mass", audited.missed), ("unread_mass", audited.unread)):
        # A mass is its own distance from none at all, so its mean is a mean absolute error.
        metric, whole = METRICS["mae"], Scored(mass, np.zeros_like(mass), audited.mask)
        kpis.append(measured(name, interval(metric, whole, **how)))
        found = groups_at_once(metric, [(whole.restrict(keep), None) for keep in groups.values()], how)
        kpis += [
            measured(name, own, slice=label, joint=joint)
            for label, (own, joint) in zip(groups, found, strict=True)
        ]
    return kpis


@dataclass(frozen=True)
class _Audited:
    """Dense rows of some windows, [W, P] each."""

    unread: Floats
    missed: Floats
    mask: Floats
    """1 where the step is one that the model is asked about."""
    slices: Mapping[str, NDArray[np.str_]]

    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Mask of every group of every slice column: "origin=JFK" and so on."""
        return {
            f"{column}={group}": values == group
            for column, values in self.slices.items()
            for group in np.unique(values)
        }


def _audit(checkpoint: Checkpoint, windows: Windows, part: str, density: float, report: Report) -> _Audited:
    import torch

    from sparse_model.config import Budget
    from sparse_model.explanation import audit

    model = load_model(checkpoint)
    picked = windows.some_cutoffs(part, _AUDITED_WINDOWS)
    first = windows.lookback if windows.horizon else 0
    steps = evenly(np.arange(first, windows.lookback + windows.horizon), _AUDITED_STEPS)
    unread, missed, masks, rows = [], [], [], []
    for done, cutoff in enumerate(picked, start=1):
        batch = windows.batch(np.array([cutoff]))
        audited = audit(model, *to_inputs(batch), Budget(density), torch.from_numpy(steps))
        for found, kept in zip(audited, (unread, missed), strict=True):
            kept.append(found[0].double().mean((0, 1)).numpy())
        masks.append(batch.target_mask[0, steps].max(-1).astype(np.float64))
        rows.append(batch.rows[0, steps])
        report(f"auditing {part}", done, len(picked))
    slices = {name: windows.column(name).astype(str)[np.stack(rows)] for name in windows.spec.slices}
    return _Audited(np.stack(unread), np.stack(missed), np.stack(masks), slices)


def to_inputs(batch: WindowBatch) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    import torch

    numeric, known, categorical = (
        torch.from_numpy(np.ascontiguousarray(array))
        for array in (batch.numeric, batch.known, batch.categorical)
    )
    return numeric, known, categorical


def _time(windows: Windows, row: int | np.integer) -> str:
    return _iso(windows.time_us[row])


def _iso(microseconds: int | np.integer) -> str:
    """The table's clock, which names no zone."""
    return str(np.datetime64(int(microseconds), "us").astype("datetime64[s]")).replace("T", " ")
