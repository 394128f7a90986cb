"""A dataset file for a table that was looked at: which column is what, what to predict, sizes that fit.

Whatever is decided here is said in `Look.said`, and what cannot be decided is asked (`Unclear`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.looking import Answers, Look, Unclear
from pipelines.data.sources import FILE
from pipelines.data.spec import RESERVED, STEP_SECONDS
from validation.errors import InputError, unknown_name

if TYPE_CHECKING:
    import polars as pl

_CODE_WORDS = ("id", "code", "cmd", "type", "class", "kind", "status", "state", "mode")
_FAULT_WORDS = ("anomal", "label", "fault", "outlier", "attack", "異常", "故障", "störung")
_PART_WORDS = {"train", "test", "valid", "validation", "val", "dev"}
_NO_NAMES = {*_PART_WORDS, "0.0", "1.0"}
_CLOCK_PARTS = {"year", "month", "day", "hour", "minute", "second", "weekday", "week"}
_MOST_CATEGORIES = 1000
_FEWEST_ROWS = 400
_MADE_UP = datetime(2000, 1, 1)
_WIDEST = 2048  # a lookback beyond it takes a GPU


@dataclass
class Roles:
    """What each column is."""

    numeric: list[str] = field(default_factory=list)
    categorical: list[str] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """And why."""


def propose(look: Look, answers: Answers) -> dict[str, Any]:
    """The content of a dataset file, `source.path` apart. Raises Unclear, or InputError where nothing can."""
    table = look.table
    if len(table) < _FEWEST_ROWS:
        raise InputError(f"{look.place}: {len(table)} rows; learning takes {_FEWEST_ROWS} at the very least")
    entity = _entity(look, answers)
    key = FILE if entity == "filename" else entity
    _in_order(look, key, answers)
    table = look.table
    roles = _roles(look, key)
    task = _task(look, roles, answers)
    step = _step(look, key, answers)
    sizes = {**_sizes(_lengths(table, key), step, task, answers), "split": _split(look, key, task)}
    rows = _described(look, roles, task)
    look.said.append(_sized(sizes, step))
    return {
        "name": _name(look.place),
        "description": f"{look.place.name}: {task['task']} of {_few(task['target'])}",
        "task": task["task"],
        "source": look.source,
        **_when(look, step),
        **({"entity_from": "filename"} if entity == "filename" else {"entity": entity} if entity else {}),
        **rows,
        "calendar": _calendar(look, step),
        "target": task["target"],
        **({"label": task["label"]} if task.get("label") else {}),
        **sizes,
    }


# Whose rows ----------------------------------------------------------------------------------------


def _entity(look: Look, answers: Answers) -> str | None:
    """The column that parts the series of several machines; "filename"; None for one series."""
    table = look.table
    if answers.entity:
        if answers.entity in ("none", "filename") or answers.entity in table.columns:
            return None if answers.entity == "none" else answers.entity
        raise InputError(f"--entity: {unknown_name('column', answers.entity, table.columns)}")
    if look.num_files > 1:
        look.said.append(f"{look.num_files} files: each is a series of its own")
        return "filename"
    found = list(_groupings(table, look.time))
    if len(found) > 1 or (found and look.time is None and not _counters(table, found[0])):
        raise Unclear(look.place, "entity", "which column says whose row it is?", [*found, "none"])
    if found:
        look.said.append(f"entity: {found[0]!r}, {table[found[0]].n_unique()} series")
    return found[0] if found else None


def _in_order(look: Look, key: str | None, answers: Answers) -> None:
    """Ask whether rows that go back in time are to be sorted; what follows sees them in order."""
    if look.time is None:
        return
    back = _moves(look.table, key, look.time) < 0
    if not back.any():
        return
    row = int(back.arg_max() or 0)
    if answers.sort is None:
        said = f"{_rows(back.sum())} earlier than the row before, the first is row {row:,}"
        raise Unclear(look.place, "sort", f"{said}: sort each series by time as it is read?", ("yes", "no"))
    if not answers.sort:
        raise InputError(f"{look.place}: row {row:,} is earlier than the row before; sort the rows by time")
    look.source["sort"] = True
    look.table = look.table.sort(look.time, maintain_order=True)
    look.said.append(f"rows are sorted by time as they are read: {_rows(back.sum())} out of order")


def _moves(table: "pl.DataFrame", key: str | None, time: str) -> "pl.Series":
    """Microseconds from the row before, of the same entity; 0 for a first row."""
    import polars as pl

    move = pl.col(time).diff()
    shown = (move.over(key) if key else move).dt.total_microseconds().fill_null(0)
    return table.select(shown.alias("us"))["us"]


def _groupings(table: "pl.DataFrame", time: str | None) -> Iterator[str]:
    """Columns of few values that may name whose row it is: time goes on within each, and not over all."""
    if time is None or not (table[time].is_sorted() and table[time].is_unique().all()):
        texts = [name for name, dtype in table.schema.items() if not dtype.is_numeric()]
        numbers = [name for name in table.columns if name not in texts]
        # A name is mostly a text; hours and codes, which part the rows as well, mostly are none.
        yield from list(_parting(table, texts, time)) or _parting(table, numbers, time)


def _parting(table: "pl.DataFrame", names: list[str], time: str | None) -> Iterator[str]:
    for name in names:
        values = table[name]
        if name in (time, FILE) or values.null_count() or set(map(str, values.unique())) <= _NO_NAMES:
            continue
        is_whole = not values.dtype.is_float() or bool((values == values.round()).all())
        is_few = not values.dtype.is_temporal() and 2 <= values.n_unique() <= len(table) / 50
        if is_whole and is_few and _goes_on(table, name, time):
            yield name


def _goes_on(table: "pl.DataFrame", name: str, time: str | None) -> bool:
    """Whether, but for a row in a hundred, time moves on in each group; without times: one stretch each."""
    if time is None:
        return table[name].ne_missing(table[name].shift(1)).sum() == table[name].n_unique()
    stays = (_moves(table, name, time) <= 0).sum() - table[name].n_unique()
    return stays < 0.01 * len(table)


def _counters(table: "pl.DataFrame", entity: str | None) -> list[str]:
    """Columns that count the rows, of each entity or all."""
    import polars as pl

    def is_one(name: str) -> bool:
        move = pl.col(name).diff()
        found = table.select((move.over(entity) if entity else move).alias("move"))["move"].drop_nulls()
        return len(found) > 0 and bool((found == 1).all())

    numbers = [name for name, dtype in table.schema.items() if dtype.is_numeric() and name != entity]
    return [name for name in numbers if is_one(name)]


# What each column is -------------------------------------------------------------------------------


def _roles(look: Look, entity: str | None) -> Roles:
    roles, table = Roles(), look.table
    counters = _counters(table, entity)
    for name in table.columns:
        if name in (FILE, look.time, entity):
            continue
        if why := _useless(table[name], name in counters):
            roles.left_out[name] = why
        elif table[name].dtype.is_numeric():
            _number(roles, table[name])
        else:
            roles.categorical.append(name)
    return roles


def _useless(values: "pl.Series", is_counter: bool) -> str:
    """Why a column is no feature; "" for a good one."""
    if values.name in RESERVED:
        return "dankai gives that name itself: rename the column to use it"
    if not values.count():
        return "it is empty"
    if values.drop_nulls().n_unique() == 1:
        return "it never changes"
    if is_counter:
        return "it counts the rows"
    if values.name.lower() in _CLOCK_PARTS:
        return "a part of the instant, which the calendar gives anyway"
    if values.dtype.is_temporal():
        return "a second instant"
    if not values.dtype.is_numeric():
        if values.drop_nulls().n_unique() > min(_MOST_CATEGORIES, len(values) / 10):
            return f"text with {values.n_unique():,} different values"
        if set(map(str, values.unique())) <= _PART_WORDS:
            return "it marks parts of the data"
    return ""


def _number(roles: Roles, values: "pl.Series") -> None:
    distinct = values.drop_nulls().unique()
    is_code = re.search(rf"(^|_)({'|'.join(_CODE_WORDS)})$", values.name.lower()) is not None
    if set(distinct) == {0.0, 1.0} and not values.null_count():
        roles.binary.append(values.name)
    elif is_code and len(distinct) <= _MOST_CATEGORIES and bool((distinct == distinct.round()).all()):
        roles.categorical.append(values.name)
    else:
        roles.numeric.append(values.name)


def _task(look: Look, roles: Roles, answers: Answers) -> dict[str, Any]:
    """What to predict: task, target and, for detection, the label."""
    for name in answers.target:
        if name not in (*roles.numeric, *roles.binary):
            raise InputError(f"--target: {unknown_name('column', name, [*roles.binary, *roles.numeric])}")
    asked = [name for name in answers.target if name in roles.binary]
    faults = [name for name in roles.binary if _is_fault(name)]
    if answers.task == "event" or (answers.task is None and _is_event(look, roles, answers, faults)):
        return {
            "task": "event",
            "target": [_label(look, asked or roles.binary, "of which column is 1 the event?")],
        }
    whole = [name for name in roles.numeric if not look.table[name].null_count()]
    target = [name for name in answers.target if name in roles.numeric] or whole
    if not target:
        raise InputError(_no_target(look, roles))
    gaps = [name for name in roles.numeric if name not in target]
    if gaps and not answers.target:
        look.said.append(f"read and not predicted, because values are missing: {_few(gaps)}")
    is_detection = answers.task == "detect" or (answers.task is None and bool(asked or faults))
    if not is_detection:
        return {"task": "forecast", "target": target}
    labels = asked or faults
    label = _label(look, labels, "which column says what was anomalous?") if labels else None
    return {"task": "detect", "target": target, "label": label}


def _is_event(look: Look, roles: Roles, answers: Answers, faults: list[str]) -> bool:
    """A 0/1 column is the event; one that is called a fault is a label where there are numbers to watch."""
    if not roles.binary:
        return False
    if answers.target:
        return set(answers.target) <= set(roles.binary) and not set(answers.target) <= set(faults)
    if not faults and roles.numeric:
        few = len(roles.binary) == 1
        if not few:
            raise Unclear(
                look.place, "target", "what is to be predicted?", [*roles.binary, *roles.numeric][:12]
            )
    return not (faults and roles.numeric)


def _is_fault(name: str) -> bool:
    return any(word in name.lower() for word in _FAULT_WORDS)


def _label(look: Look, names: list[str], question: str) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise InputError(f"{look.place}: --task event needs a column that holds 0 and 1; it has none")
    raise Unclear(look.place, "target", question, names)


def _no_target(look: Look, roles: Roles) -> str:
    gaps = [name for name in roles.numeric if look.table[name].null_count()]
    if gaps:
        row = int(look.table[gaps[0]].is_null().arg_max() or 0)
        return f"{look.place}: every column of numbers has gaps, {gaps[0]!r} first in row {row}: fill them"
    columns = "; ".join(f"{name!r}: {why}" for name, why in roles.left_out.items())
    return f"{look.place}: nothing in it to predict ({columns}); is it the table of measurements or events?"


def _described(look: Look, roles: Roles, task: dict[str, Any]) -> dict[str, Any]:
    """The columns as the dataset file lists them; 0/1 columns beside the target are numbers."""
    used = {*task["target"], task.get("label")}
    hints = [name for name in roles.binary if name not in used and _is_fault(name)]
    roles.left_out |= dict.fromkeys(hints, "it says what is to be found out")
    used |= {*hints}
    numeric = [*roles.numeric, *(name for name in roles.binary if name not in used)]
    holey = [name for name in (*numeric, *roles.categorical) if look.table[name].null_count()]
    what = f"{task['task']}: {_few(task['target'])}" + (
        f", label {task['label']!r}" if task.get("label") else ""
    )
    look.said.append(what)
    look.said += [f"{name!r} is left out: {why}" for name, why in roles.left_out.items()]
    return {
        "numeric": numeric,
        **({"categorical": roles.categorical} if roles.categorical else {}),
        **({"nullable": holey} if holey else {}),
    }


# When, and how much --------------------------------------------------------------------------------


def _step(look: Look, entity: str | None, answers: Answers) -> str | None:
    """Time between rows where all are equally far apart, such as 1h."""
    if look.time is None:
        if not answers.step or not re.fullmatch(r"[1-9]\d*(s|min|h|d)", answers.step):
            raise InputError(f"--step {answers.step}: write it as 10s, 5min, 1h or 1d")
        return answers.step
    moves = _moves(look.table, entity, look.time)
    moves = moves.filter(moves != 0) if _has_one_first_row_each(look.table, entity, moves) else moves
    if moves.n_unique() != 1:
        odd = int((moves != moves.mode().sort()[0]).sum())
        look.said.append(
            f"{odd:,} rows do not follow the one before by the usual step: taken as events in order"
        )
        return None
    seconds = moves[0] / 1e6
    for unit, length in reversed(STEP_SECONDS.items()):
        if seconds >= length and seconds % length == 0:
            return f"{round(seconds / length)}{unit}"
    return None


def _has_one_first_row_each(table: "pl.DataFrame", entity: str | None, moves: "pl.Series") -> bool:
    """Whether nothing but the first row of each series stands still."""
    return int((moves == 0).sum()) == (table[entity].n_unique() if entity else 1)


def _when(look: Look, step: str | None) -> dict[str, Any]:
    if look.time is not None:
        return {"time": look.time, **({"step": step} if step else {})}
    look.said.append(
        f"rows are {step} apart from {_MADE_UP:%Y-%m-%d} on, a made-up day: only differences count"
    )
    return {"start": f"{_MADE_UP:%Y-%m-%d}", "step": step}


def _calendar(look: Look, step: str | None) -> list[str]:
    if look.time is None:
        return []
    days = (look.table[look.time].max() - look.table[look.time].min()).days  # type: ignore[operator]
    is_daily = step is not None and step.endswith("d")
    return [
        name for name, has in (("hour", not is_daily), ("weekday", days >= 14), ("month", days >= 365)) if has
    ]


def _lengths(table: "pl.DataFrame", entity: str | None) -> list[int]:
    return sorted(table.group_by(entity).len()["len"]) if entity else [len(table)]


def _split(look: Look, key: str | None, task: dict[str, Any]) -> dict[str, float]:
    """60, 20 and 20%; a detection that has labels trains on what comes before the first anomaly."""
    import polars as pl

    split = {"validation": 0.6, "test": 0.8}
    if task.get("label"):
        is_first = pl.col(task["label"]).eq(1).arg_max() / pl.len()
        has = pl.col(task["label"]).eq(1).any()
        shares = look.table.group_by(key or pl.lit(0)).agg(first=is_first, has=has).filter("has")["first"]
        clean = int(20 * (shares.min() or 0)) / 20  # type: ignore[operator]
        if 0.3 <= clean < 0.8:
            split = {"validation": round(0.8 * clean, 2), "test": clean}
            look.said.append(f"no anomaly is labelled in the first {clean:.0%}: only that is trained on")
    train, stop = f"{split['validation']:.0%}", f"{split['test']:.0%}"
    look.said.append(
        f"of each series the first {train} trains, up to {stop} ends trainings early, the rest judges"
    )
    return split


def _sizes(lengths: list[int], step: str | None, task: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Lookback, horizon, stride, split, and a model that two cores train in minutes."""
    typical, every = lengths[len(lengths) // 2], sum(lengths)
    is_detection = task["task"] == "detect"
    # A detection tiles the test part (20%) with windows: forty of them can be judged.
    room = min(typical // 5, every // 200) if is_detection else typical // 5
    lookback = answers.lookback or max(32, min(_WIDEST, 1 << max(5, room.bit_length() - 1)))
    horizon = 0 if is_detection else answers.horizon or _horizon(lookback, step)
    block = max(8, min(64, lookback // 32))
    stride = lookback if is_detection else max(1, min(horizon, every // 5 // 60))
    steps = lookback + horizon
    return {
        "lookback": lookback,
        "horizon": horizon,
        "stride": stride,
        "model": {
            "width": 64,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 4,
            "ffn_width": 192,
            "block_size": block,
            "selector_heads": 1,
            "selector_dim": 8,
        },
        "training": {
            "num_steps": 360,
            "selector_steps": 60,
            "tuning_steps": 60,
            "tokens_per_step": max(2 * steps, 4096 // steps * steps),
            "peak_learning_rate": 0.002,
            "steps_per_epoch": 60,
            "validation_windows": 16,
            "curriculum": [[0.25, 0.75], [1.0, 0.25]],
            "densities": [0.0625, 0.125, 0.25, 0.5],
            "target_density": 0.125,
        },
    }


def _horizon(lookback: int, step: str | None) -> int:
    """A day where rows are regular and a day fits; else an eighth of the lookback."""
    longest = max(1, lookback // 8)
    if step is None:
        return longest
    number, unit = re.fullmatch(r"(\d+)(\w+)", step).groups()  # type: ignore[union-attr]
    day = 86400 // (int(number) * STEP_SECONDS[unit])
    return day if 4 <= day <= longest else longest


def _sized(sizes: dict[str, Any], step: str | None) -> str:
    far = f" of {step}" if step else ""
    ahead = f", {sizes['horizon']} ahead" if sizes["horizon"] else ""
    known = "; nothing counts as known in advance (known_future)" if sizes["horizon"] else ""
    return f"windows of {sizes['lookback']:,} rows{far}{ahead}{known}"


def _name(place: Path) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", place.stem.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"data_{plain}".rstrip("_")


def _rows(count: float) -> str:
    return f"{int(count):,} rows are" if count != 1 else "1 row is"


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
