"""A table's rows as arrays, before any window is cut: each row by itself, so a table may come in parts.

Shape letters: N rows, F numeric inputs, C categorical inputs, O targets.
"""

from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.preprocessing import Preprocessing, calendar_waves, plausible
from pipelines.data.spec import DatasetSpec

if TYPE_CHECKING:
    import polars as pl

NEVER = np.iinfo(np.int64).max


def arrays_of(
    table: "pl.DataFrame", spec: DatasetSpec, preprocessing: Preprocessing
) -> dict[str, np.ndarray]:
    """What Windows holds of these rows, by name; the instants of late inputs by position."""
    time_us = table["time"].to_physical().to_numpy()
    values, present = _numeric(table, preprocessing, time_us)
    targets, target_present = _targets(table, spec, values, present)
    known_at = {str(position): at for position, at in _known_at(table, spec, preprocessing).items()}
    return {
        "time_us": time_us,
        "values": values,
        "present": present,
        "codes": _codes(table, preprocessing),
        "targets": targets,
        "target_present": target_present,
        **known_at,
    }


def _numeric(
    table: "pl.DataFrame", preprocessing: Preprocessing, time_us: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, F] and bool [N, F]"""
    values = np.zeros((len(table), len(preprocessing.numeric_names)), np.float32)
    present = np.ones(values.shape, bool)
    for position, scale in enumerate(preprocessing.scales):
        raw = table[scale.name].to_numpy().astype(np.float64)
        present[:, position] = plausible(raw, scale)
        values[:, position] = np.where(present[:, position], (raw - scale.mean) / scale.std, 0.0)
    waves = calendar_waves(time_us / 60e6, preprocessing.calendar)
    first = len(preprocessing.scales)
    values[:, first : first + waves.shape[1]] = waves
    if preprocessing.past_target:
        values[:, -1], present[:, -1] = _outcomes(table, preprocessing.past_target)
    return values, present


def _outcomes(table: "pl.DataFrame", target: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N] and bool [N]: whether the event came; what is neither 0 nor 1 is unknown (0, False)."""
    raw = table[target].to_numpy()
    present = np.isin(raw, (0, 1))
    return np.where(present, raw, 0).astype(np.float32), present


def _known_at(
    table: "pl.DataFrame", spec: DatasetSpec, preprocessing: Preprocessing
) -> dict[int, np.ndarray]:
    """The instant from which on each late input, and the past outcome, is known."""
    names = preprocessing.numeric_names
    late = {names.index(name): spec.late.known_at for name in spec.late.columns} if spec.late else {}
    if preprocessing.past_target and spec.target_known_at:
        late[names.index(preprocessing.past_target)] = spec.target_known_at
    return {position: table[at].to_physical().fill_null(NEVER).to_numpy() for position, at in late.items()}


def _codes(table: "pl.DataFrame", preprocessing: Preprocessing) -> np.ndarray:
    """int32 [N, C]"""
    import polars as pl

    codes = np.zeros((len(table), len(preprocessing.vocabularies)), np.int32)
    for position, vocabulary in enumerate(preprocessing.vocabularies):
        numbers = pl.Series(range(1, len(vocabulary.values) + 1), dtype=pl.Int32)
        column = table[vocabulary.name].replace_strict(
            pl.Series(vocabulary.values, dtype=pl.String), numbers, default=0, return_dtype=pl.Int32
        )
        codes[:, position] = column.fill_null(0).to_numpy()
    return codes


def _targets(
    table: "pl.DataFrame", spec: DatasetSpec, values: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, O] and bool [N, O]: the outcome, or the z-scored inputs that are to be predicted."""
    if spec.task == "event":
        outcomes, present = _outcomes(table, spec.target[0])
        return outcomes[:, None], present[:, None]
    columns = [spec.numeric.index(name) for name in spec.target]
    return np.ascontiguousarray(values[:, columns]), np.ascontiguousarray(present[:, columns])
