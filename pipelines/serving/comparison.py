"""Two answers to one request compared, and what many of them say as KPIs for a gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.data.spec import DatasetSpec, Task
from pipelines.job import dataset_folder
from pipelines.serving.ladder import Move, read_moves
from pipelines.serving.store import read_pairs
from pipelines.settings import Settings
from pipelines.signing import trusted_keys
from validation.canary import Pair, measure
from validation.errors import InputError
from validation.kpis import KINDS, Kpi, kpi
from validation.statistics import Interval

NAMES = {
    "error rate": "canary_error_rate",
    "disagreement": "shadow_disagreement",
    "latency ratio": "canary_latency_ratio",
}

_EXCHANGES = "exchanges.sqlite3"


@dataclass(frozen=True)
class Comparison:
    """How answers of a dataset's models are compared: only the steps that are asked about."""

    task: Task
    horizon: int

    @classmethod
    def of(cls, spec: DatasetSpec) -> "Comparison":
        return cls(spec.task, spec.horizon)

    def disagreement(self, one: bytes, other: bytes) -> float:
        """In [0, 1]: mean difference of two answers' probabilities, or of values in standard deviations.

        For an event's probabilities it is the total variation distance: how often two draws must differ.
        """
        first, second = (self._asked(body) for body in (one, other))
        if self.task == "event":
            first, second = (0.5 + 0.5 * np.tanh(0.5 * logits) for logits in (first, second))
        return float(np.minimum(1.0, np.abs(first - second)).mean())

    def _asked(self, body: bytes) -> NDArray[np.float64]:
        outputs = np.asarray(json.loads(body)["predictions"], dtype=np.float64)
        return outputs[:, -self.horizon :] if self.horizon else outputs


def serving_folder(settings: Settings, dataset: str) -> Path:
    return dataset_folder(settings, dataset) / "serving"


def pair_folder(settings: Settings, dataset: str, incumbent: str, candidate: str) -> Path:
    """Where the requests that these two checkpoints answered are kept."""
    return serving_folder(settings, dataset) / f"{incumbent[:16]}-{candidate[:16]}"


def canary_kpis(
    settings: Settings,
    dataset: str,
    *,
    candidate: str,
    incumbent: str,
    snapshot: str,
    confidence: float,
    min_requests: int,
) -> list[Kpi]:
    """What real requests say of a candidate against an incumbent (SHA-256 of the weights of both).

    Over all requests, and for each step of the ladder as slice "share=0.05"; nothing of what rests on fewer
    than `min_requests` that were the candidate's to answer. After a breach each KPI is the worst that it can
    be, however many requests went well before: a candidate that was taken out answers nobody.

    The ladder's moves are signed and chained; the requests and the number of the last move, which shows when
    moves were cut off at the end, are not: who can write to the home folder can change both together.
    Raises InputError where moves were altered or lost, or the requests are not readable.
    """
    folder = pair_folder(settings, dataset, incumbent, candidate)
    moves = read_moves(folder / "ladder.jsonl", trusted_keys(settings.keys))
    if not (folder / _EXCHANGES).is_file():
        return []
    by_share, last_move, newest_at = read_pairs(folder / _EXCHANGES)
    refuse_lost_moves(folder, moves, last_move)
    if any((move.incumbent, move.candidate) != (incumbent, candidate) for move in moves):
        raise InputError(f"{folder / 'ladder.jsonl'}: holds moves of other models; move the file away")
    if not moves:
        return []
    measured = {"": measure([pair for pairs in by_share.values() for pair in pairs], confidence)}
    measured |= {f"share={share:g}": measure(pairs, confidence) for share, pairs in by_share.items()}
    answered = {f"share={share:g}": _num_assigned(share, pairs) for share, pairs in by_share.items()}
    answered[""] = sum(answered.values())
    if moves[-1].action == "breach":
        measured = {"": _worst(measured[""])}
    # As old as the newest request: evidence that still comes in is not stale, however long it has done so.
    about = {"checkpoint": candidate, "snapshot": snapshot, "measured_at": newest_at}
    return [
        kpi(NAMES[name], value, slice=slice, **about)
        for slice, values in measured.items()
        if answered[slice] >= min_requests or moves[-1].action == "breach"
        for name, value in values.items()
    ]


def refuse_lost_moves(folder: Path, moves: Sequence[Move], last_move: int) -> None:
    """Raises InputError where the ladder holds fewer moves than were noted beside the requests."""
    if last_move > len(moves):
        lost = f"holds {len(moves)} moves of {last_move}"
        raise InputError(f"{folder / 'ladder.jsonl'}: {lost}; restore it from a backup")


def _num_assigned(share: float, pairs: Sequence[Pair]) -> int:
    """As a step of the ladder counts them: in shadow all."""
    return len(pairs) if share == 0 else sum(pair.assigned for pair in pairs)


def _worst(measured: Mapping[str, Interval]) -> dict[str, Interval]:
    """The end of each KPI's range that no bound allows; infinite where it has none, which never passes."""
    ends = {name: KINDS[NAMES[name]].highest for name in measured}
    return {
        name: value.model_copy(update={"value": ends[name], "low": ends[name], "high": ends[name]})
        for name, value in measured.items()
    }
