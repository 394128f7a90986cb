"""What the columns of a table are: whose row it is, numbers, categories, what to predict, what is no feature.

Decided by what the columns hold and, where that is not enough, by the names that people give; else asked.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.data.looking import Answers, Look, Unclear
from pipelines.data.sources import FILE
from pipelines.data.spec import RESERVED
from validation.errors import InputError, unknown_name

if TYPE_CHECKING:
    import polars as pl

_CODE_WORDS = ("id", "code", "cmd", "type", "class", "kind", "status", "state", "mode")
_FAULT_WORDS = ("anomal", "label", "fault", "outlier", "attack", "異常", "故障", "störung")
_PART_WORDS = {"train", "test", "valid", "validation", "val", "dev"}
_NO_NAMES = {*_PART_WORDS, "0.0", "1.0"}
_CLOCK_PARTS = {"year", "month", "day", "hour", "minute", "second", "weekday", "week"}
_MOST_CATEGORIES = 1000


@dataclass
class Roles:
    """What each column is."""

    numeric: list[str] = field(default_factory=list)
    categorical: list[str] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """And why."""
    still: list[str] = field(default_factory=list)
    """Numbers that tell series apart and never change within one: to be read, nothing to predict."""


# Whose rows ----------------------------------------------------------------------------------------


def entity_of(look: Look, answers: Answers) -> str | None:
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


def put_in_order(look: Look, key: str | None, answers: Answers) -> None:
    """Ask whether rows that go back in time are to be sorted; what follows sees them in order."""
    if look.time is None:
        return
    back = moves_of(look.table, key, look.time) < 0
    if not back.any():
        return
    row = int(back.arg_max() or 0)
    if answers.sort is None:
        said = f"{_rows(int(back.sum()))} earlier than the row before, the first is row {row:,}"
        raise Unclear(look.place, "sort", f"{said}: sort each series by time as it is read?", ("yes", "no"))
    if not answers.sort:
        raise InputError(f"{look.place}: row {row:,} is earlier than the row before; sort the rows by time")
    look.source["sort"] = True
    look.table = look.table.sort(look.time, maintain_order=True)
    look.said.append(f"rows are sorted by time as they are read: {_rows(int(back.sum()))} out of order")


def moves_of(table: "pl.DataFrame", key: str | None, time: str) -> "pl.Series":
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
    stays = (moves_of(table, name, time) <= 0).sum() - table[name].n_unique()
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


def roles_of(look: Look, entity: str | None) -> Roles:
    """What each column but the time and the `entity` is."""
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
    roles.still = [name for name in roles.numeric if entity and _is_still(table, name, entity)]
    return roles


def _is_still(table: "pl.DataFrame", name: str, entity: str) -> bool:
    import polars as pl

    return table.group_by(entity).agg(pl.col(name).drop_nulls().n_unique())[name].max() == 1


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


def task_of(look: Look, roles: Roles, answers: Answers) -> dict[str, Any]:
    """What to predict: task, target and, for detection, the label."""
    for name in answers.target:
        if name not in (*roles.numeric, *roles.binary):
            raise InputError(f"--target: {unknown_name('column', name, [*roles.binary, *roles.numeric])}")
        if name in roles.still:
            raise InputError(f"--target: {name!r} never changes within a series: there is nothing to predict")
    asked = [name for name in answers.target if name in roles.binary]
    faults = [name for name in roles.binary if _is_fault(name)]
    if answers.task == "event" or (answers.task is None and _is_event(look, roles, answers, faults)):
        return {
            "task": "event",
            "target": [_label(look, asked or roles.binary, "of which column is 1 the event?")],
        }
    moving = [name for name in roles.numeric if name not in roles.still]
    whole = [name for name in moving if not look.table[name].null_count()]
    target = [name for name in answers.target if name in roles.numeric] or whole
    if not target:
        raise InputError(_no_target(look, roles))
    gaps = [name for name in moving if name not in target]
    if roles.still:
        still = few(roles.still)
        look.said.append(f"read and not predicted, because it never changes within a series: {still}")
    if gaps and not answers.target:
        look.said.append(f"read and not predicted, because values are missing: {few(gaps)}")
    is_detection = answers.task == "detect" or (answers.task is None and bool(asked or faults))
    if not is_detection:
        return {"task": "forecast", "target": target}
    labels = asked or faults
    label = _label(look, labels, "which column says what was anomalous?") if labels else None
    return {"task": "detect", "target": target, "label": label}


def _is_event(look: Look, roles: Roles, answers: Answers, faults: list[str]) -> bool:
    """A 0/1 column is the event; one that is called a fault is a label where there are numbers to watch."""
    if answers.target:
        return set(answers.target) <= {*roles.binary} - {*faults}
    if len(roles.binary) > 1 and roles.numeric and not faults:
        choices = [*roles.binary, *roles.numeric][:12]
        raise Unclear(look.place, "target", "what is to be predicted?", choices)
    return bool(roles.binary) and not (faults and roles.numeric)


def _is_fault(name: str) -> bool:
    return any(word in name.lower() for word in _FAULT_WORDS)


def _label(look: Look, names: list[str], question: str) -> str:
    if len(names) == 1:
        return names[0]
    if not names:
        raise InputError(f"{look.place}: --task event needs a column that holds 0 and 1; it has none")
    raise Unclear(look.place, "target", question, names)


def _no_target(look: Look, roles: Roles) -> str:
    moving = [name for name in roles.numeric if name not in roles.still]
    gaps = [name for name in moving if look.table[name].null_count()]
    if gaps:
        row = int(look.table[gaps[0]].is_null().arg_max() or 0)
        return f"{look.place}: every column of numbers has gaps, {gaps[0]!r} first in row {row}: fill them"
    still = dict.fromkeys(roles.still, "it never changes within a series")
    columns = "; ".join(f"{few(names)}: {why}" for names, why in _by_reason(roles.left_out | still))
    return f"{look.place}: nothing in it to predict ({columns}); is it the table of measurements or events?"


def described(look: Look, roles: Roles, task: dict[str, Any]) -> dict[str, Any]:
    """The columns as the dataset file lists them; 0/1 columns beside the target are numbers."""
    used = {*task["target"], task.get("label")}
    hints = [name for name in roles.binary if name not in used and _is_fault(name)]
    roles.left_out |= dict.fromkeys(hints, "it says what is to be found out")
    used |= {*hints}
    numeric = [*roles.numeric, *(name for name in roles.binary if name not in used)]
    holey = [name for name in (*numeric, *roles.categorical) if look.table[name].null_count()]
    what = f"{task['task']}: {few(task['target'])}" + (
        f", label {task['label']!r}" if task.get("label") else ""
    )
    look.said.append(what)
    look.said += [
        f"{few(names)} {'is' if len(names) == 1 else 'are'} left out: {why}"
        for names, why in _by_reason(roles.left_out)
    ]
    return {
        "numeric": numeric,
        **({"categorical": roles.categorical} if roles.categorical else {}),
        **({"nullable": holey} if holey else {}),
    }


def _by_reason(left_out: dict[str, str]) -> Iterator[tuple[list[str], str]]:
    """Names that share a reason, and the reason."""
    for why in dict.fromkeys(left_out.values()):
        yield [repr(name) for name, its in left_out.items() if its == why], why


def _rows(count: int) -> str:
    return f"{count:,} rows are" if count != 1 else "1 row is"


def few(names: list[str]) -> str:
    """The first of them."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
