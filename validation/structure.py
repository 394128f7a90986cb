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
    if frame.empty:
        raise InputError(f"{contract.source}: the table has no rows: check the source's path and dates")
    for column in contract.columns:
        _refuse_wrong_type(frame, column, contract.source)
    _refuse_duplicates(frame, contract)
    _refuse_disorder(frame, contract)
    _refuse_unusable_targets(frame, contract)


def _refuse_wrong_type(frame: "pd.DataFrame", column: "Column", source: str) -> None:
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
        example = f"row {row} holds {values.iloc[row]!r}"
        fix = f"convert it, or declare it as what it is ({values.dtype})"
        raise InputError(f"{source}: column {column.name!r} is not of type {column.type}: {example}: {fix}")


def _refuse_duplicates(frame: "pd.DataFrame", contract: "Contract") -> None:
    if not contract.key:
        return
    repeated = frame.duplicated(list(contract.key))
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        key = ", ".join(f"{name}={frame[name].iloc[row]}" for name in contract.key)
        raise InputError(f"{contract.source}: row {row} repeats the key {key}: keep one row per key")


def _refuse_disorder(frame: "pd.DataFrame", contract: "Contract") -> None:
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
            f"{where}: row {row} ({times.iloc[row]}) is earlier than the row before: sort by time"
        )
    if contract.step_seconds is None:
        return
    uneven = abs(seconds - contract.step_seconds) > 1e-6 * contract.step_seconds
    if uneven.any():
        row = int(uneven.argmax())
        found = f"row {row} ({times.iloc[row]}) comes {seconds[row]:g} s after the one before"
        raise InputError(f"{where}: {found}, not {contract.step_seconds:g} s: fill the gap or remove `step`")


def _refuse_unusable_targets(frame: "pd.DataFrame", contract: "Contract") -> None:
    import numpy as np

    for name in contract.targets:
        unusable = ~np.isfinite(frame[name].to_numpy(dtype=np.float64, na_value=np.nan))
        if unusable.any():
            row = int(unusable.argmax())
            fix = "fill or remove such rows"
            raise InputError(
                f"{contract.source}: target {name!r} is {frame[name].iloc[row]} in row {row}: {fix}"
            )
    label = contract.positive_label
    if label is not None and not (frame[label].to_numpy() == 1).any():
        raise InputError(
            f"{contract.source}: label {label!r} is never 1: take a longer span or another label"
        )
