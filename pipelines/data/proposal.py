"""A dataset file for a table that was looked at: which column is what, what to predict, sizes that fit.

Whatever is decided here is said in `Look.said`, and what cannot be decided is asked (`Unclear`).
"""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.data.looking import Answers, Look
from pipelines.data.roles import described, entity_of, few, moves_of, put_in_order, roles_of, task_of
from pipelines.data.sources import FILE
from pipelines.data.spec import STEP_SECONDS
from validation.errors import InputError

if TYPE_CHECKING:
    import polars as pl

_FEWEST_ROWS = 400
_MADE_UP = datetime(2000, 1, 1)
_FAR_APART = 100
_WIDEST = 2048  # as in the shipped datasets, which two cores train in minutes


def propose(look: Look, answers: Answers) -> dict[str, Any]:
    """The content of a dataset file, `source.path` apart. Raises Unclear, or InputError where nothing can."""
    table = look.table
    if len(table) < _FEWEST_ROWS:
        wanted = f"windows to train on, to stop by and to judge take {_FEWEST_ROWS}"
        raise InputError(f"{look.place}: {len(table)} rows; {wanted}")
    entity = entity_of(look, answers)
    key = FILE if entity == "filename" else entity
    put_in_order(look, key, answers)
    table = look.table
    roles = roles_of(look, key)
    task = task_of(look, roles, answers)
    step = _step(look, key, answers)
    sizes = {**_sizes(_lengths(table, key), step, task, answers), "split": _split(look, key, task)}
    rows = described(look, roles, task)
    look.said.append(_sized(sizes, step))
    look.said += _uneven(table, key, task["target"]) if key and task["task"] != "event" else []
    return {
        "name": _name(look.place),
        "description": f"{look.place.name}: {task['task']} of {few(task['target'])}",
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


# When, and how much --------------------------------------------------------------------------------


def _step(look: Look, entity: str | None, answers: Answers) -> str | None:
    """Time between rows where all are equally far apart, such as 1h."""
    if look.time is None:
        if not answers.step or not re.fullmatch(r"[1-9]\d*(s|min|h|d)", answers.step):
            raise InputError(f"--step {answers.step}: write it as 10s, 5min, 1h or 1d")
        return answers.step
    moves = moves_of(look.table, entity, look.time)
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


def _uneven(table: "pl.DataFrame", key: str, targets: list[str]) -> list[str]:
    """Targets whose spread differs so much between series that one scale for all leaves most of them flat."""
    import polars as pl

    spreads = table.group_by(key).agg(pl.col(name).std() for name in targets)
    found = []
    for name in targets:
        if still := int((spreads[name] == 0).sum()):
            found.append(f"{name!r} never changes in {still} of {len(spreads)} series: they teach nothing")
            continue
        largest, usual = spreads[name].max(), spreads[name].median()
        if largest and usual is not None and largest > _FAR_APART * usual:  # type: ignore[operator]
            most = f"{_FAR_APART} times as far in one series as in most, which look flat beside it"
            found.append(f"{name!r} spreads over {most}: scale it first")
    return found


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
