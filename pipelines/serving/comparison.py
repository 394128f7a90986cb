"""Two answers to one request compared, and what many of them say as KPIs for a gate."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.data.spec import DatasetSpec, Task
from pipelines.job import dataset_folder
from pipelines.serving.ladder import read_moves
from pipelines.serving.store import Exchanges
from pipelines.settings import Settings
from pipelines.signing import trusted_keys
from validation.canary import Pair, measure
from validation.kpis import Kpi, kpi

NAMES = {
    "error rate": "canary_error_rate",
    "disagreement": "shadow_disagreement",
    "latency ratio": "canary_latency_ratio",
}


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
    snapshot: str,
    confidence: float,
    incumbent: str | None = None,
) -> list[Kpi]:
    """What real requests say of a candidate (SHA-256 of its weights); [] where it answered none.

    Over all requests, and for each step of the ladder as slice "share=0.05". `incumbent`: only against this
    one; by default against the one that it last met. Raises InputError where the ladder's moves were altered.
    """
    pattern = f"{incumbent[:16] if incumbent else '*'}-{candidate[:16]}"
    folders = [path.parent for path in serving_folder(settings, dataset).glob(f"{pattern}/ladder.jsonl")]
    if not folders:
        return []
    folder = max(folders, key=lambda each: (each / "ladder.jsonl").stat().st_mtime)
    read_moves(folder / "ladder.jsonl", trusted_keys(settings.keys))
    exchanges = Exchanges(folder / "exchanges.sqlite3")
    by_share = exchanges.pairs_by_share()
    exchanges.close()
    groups = {"": [pair for pairs in by_share.values() for pair in pairs]}
    groups |= {f"share={share:g}": pairs for share, pairs in by_share.items()}
    return [
        each
        for name, pairs in groups.items()
        if pairs
        for each in _kpis(pairs, name, candidate, snapshot, confidence)
    ]


def _kpis(pairs: list[Pair], slice: str, candidate: str, snapshot: str, confidence: float) -> list[Kpi]:
    return [
        kpi(NAMES[name], measured, checkpoint=candidate, snapshot=snapshot, slice=slice)
        for name, measured in measure(pairs, confidence).items()
    ]
