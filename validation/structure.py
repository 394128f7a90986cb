"""Faults of a whole table: each is refused with one line that names the file, the column and the fix."""

import numbers
from datetime import datetime
from typing import TYPE_CHECKING

from validation.errors import InputError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

    from validation.data import Column, Contract

_PYTHON_TYPES = {"number": numbers.Real, "text": str, "boolean": bool, "time": datetime}


def refuse_broken(frame: "pd.DataFrame", contract: "Contract") -> None:
    """Raise InputError for the first fault of the whole table."""
    structure = Structure(contract)
    structure.see(frame)
    structure.end()


class Structure:
    """The look for faults of a whole table, which may come in parts, in order."""

    def __init__(self, contract: "Contract") -> None:
        self.contract = contract
        self.num_rows = 0
        self.has_positive = False
        self._last: pd.DataFrame | None = None  # the last row, which the next part has to follow
        self._entities: set[str] = set()

    def see(self, frame: "pd.DataFrame") -> None:
        """Raises InputError for the first fault."""
        if frame.empty:
            return
        contract, before = self.contract, self.num_rows
        for column in contract.columns:
            _refuse_wrong_type(frame, column, contract.source, before)
        joined, first = self._joined(frame, before)
        _refuse_duplicates(joined, contract, first)
        _refuse_disorder(joined, contract, first)
        _refuse_unusable_targets(frame, contract, before)
        label = contract.positive_label
        self.has_positive = self.has_positive or label is None or bool((frame[label].to_numpy() == 1).any())
        self.num_rows += len(frame)

    def end(self) -> None:
        """Raises InputError for what only the whole table shows."""
        source, label = self.contract.source, self.contract.positive_label
        if not self.num_rows:
            raise InputError(f"{source}: the table has no rows: check the source's path and dates")
        if not self.has_positive:
            raise InputError(f"{source}: label {label!r} is never 1: take a longer span or another label")

    def _joined(self, frame: "pd.DataFrame", before: int) -> "tuple[pd.DataFrame, int]":
        """The part's keys, times and entities after the last row seen; and that row's number."""
        import pandas as pd

        contract = self.contract
        names = [*dict.fromkeys(n for n in (*contract.key, contract.time, contract.entity) if n is not None)]
        rows: pd.DataFrame = frame[names]  # pyright: ignore[reportAssignmentType]
        joined = pd.concat([self._last, rows], ignore_index=True) if self._last is not None else rows
        if contract.entity is not None:
            self._refuse_scattered(rows[contract.entity], before)  # pyright: ignore[reportArgumentType]
        self._last = rows.tail(1)
        return joined, before + len(rows) - len(joined)

    def _refuse_scattered(self, entities: "pd.Series", before: int) -> None:
        """Parts are compared with the row before them: an entity that comes again later would go unseen."""
        last = None if self._last is None else self._last[self.contract.entity].iloc[0]
        if again := (set(entities.unique()) & self._entities) - {last}:
            name = sorted(again)[0]
            row = before + int((entities == name).to_numpy().argmax())
            raise InputError(
                f"{self.contract.source}: row {row} is of {name!r} again, whose rows ended before: "
                "keep the rows of an entity together"
            )
        self._entities.update(entities.unique())


def _refuse_wrong_type(frame: "pd.DataFrame", column: "Column", source: str, before: int) -> None:
    from pandas.api import types

    if column.name not in frame.columns:
        raise InputError(f"{source}: {unknown_name('column', column.name, map(str, frame.columns))}")
    values = frame[column.name]
    is_boolean = types.is_bool_dtype(values)
    fits = {
        "number": types.is_numeric_dtype(values) and not is_boolean,
        "text": types.is_string_dtype(values) or isinstance(values.dtype, types.CategoricalDtype),
        "boolean": is_boolean,
        "time": types.is_datetime64_any_dtype(values),
    }
    if not fits[column.type] and values.notna().to_numpy().any():
        fitting = values.map(lambda value: isinstance(value, _PYTHON_TYPES[column.type]))
        row = int((~fitting & values.notna()).to_numpy().argmax())
        example = f"row {before + row} holds {values.iloc[row]!r}"
        fix = f"convert it, or declare it as what it is ({values.dtype})"
        raise InputError(f"{source}: column {column.name!r} is not of type {column.type}: {example}: {fix}")


def _refuse_duplicates(frame: "pd.DataFrame", contract: "Contract", before: int) -> None:
    if not contract.key:
        return
    repeated = frame.duplicated(list(contract.key))
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        key = ", ".join(f"{name}={frame[name].iloc[row]}" for name in contract.key)
        raise InputError(f"{contract.source}: row {before + row} repeats the key {key}: keep one row per key")


def _refuse_disorder(frame: "pd.DataFrame", contract: "Contract", before: int) -> None:
    """Times that go back, or that do not move by the declared step."""
    if contract.time is None:
        return
    times = frame[contract.time]
    moves = (times.groupby(frame[contract.entity], sort=False) if contract.entity else times).diff()
    seconds = moves.dt.total_seconds().to_numpy()
    where = f"{contract.source}: column {contract.time!r}"
    if (seconds < 0).any():
        row = int((seconds < 0).argmax())
        raise InputError(
            f"{where}: row {before + row} ({times.iloc[row]}) is earlier than the row before: sort by time"
        )
    if contract.step_seconds is None:
        return
    uneven = abs(seconds - contract.step_seconds) > 1e-6 * contract.step_seconds
    if uneven.any():
        row = int(uneven.argmax())
        found = f"row {before + row} ({times.iloc[row]}) comes {seconds[row]:g} s after the one before"
        raise InputError(f"{where}: {found}, not {contract.step_seconds:g} s: fill the gap or remove `step`")


def _refuse_unusable_targets(frame: "pd.DataFrame", contract: "Contract", before: int) -> None:
    import numpy as np

    for name in contract.targets:
        unusable = ~np.isfinite(frame[name].to_numpy(dtype=np.float64, na_value=np.nan))
        if unusable.any():
            row = int(unusable.argmax())
            fix = "fill or remove such rows"
            raise InputError(
                f"{contract.source}: target {name!r} is {frame[name].iloc[row]} in row {before + row}: {fix}"
            )
