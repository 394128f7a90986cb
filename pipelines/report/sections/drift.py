"""The life of the model: how good it was, how far the data moved, and when it was trained again."""

import math
from collections.abc import Iterator

from pipelines.report.charts import (
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    chart,
    level,
    name,
    quantity,
    told_apart,
    tooltip,
    whisker,
)
from pipelines.report.figures import between, listed, number, span
from pipelines.report.page import Cell, Chart, Note, Rows, Section, Spec, Table, missing
from pipelines.report.story import Period, Story
from pipelines.report.words import Words
from validation.drift import DriftReport

_DECISIONS = ("none", "watch", "retrain", "fault")
_KINDS = ("inputs", "outcomes", "relations", "predictions", "selection")
_TRAINED = ("trained", "promoted", "held", "dropped")
_MOST = 12  # effects listed, and named in one cell: the data has all


def drift(story: Story, words: Words) -> Section:
    if not story.periods:
        return Section("drift", words("drift"), (missing(words("drift.none")),))
    periods, effects = list(_period_rows(story, words)), list(_effect_rows(story, words))
    blocks: list[Note | Chart | Table] = [Note(words("drift.intro"))]
    if any(row["value"] is not None for row in periods):
        metric = next(each.metric for each in story.periods if each.value)
        title = words("drift.metric", kpi=words(f"kpi.{metric}"))
        n = span([row["n"] for row in periods if row["value"] is not None], words)
        blocks.append(Chart(title, words("drift.metric.text", n=n), _metric_chart(title, periods, words)))
    if effects:
        text = words("drift.strength.text", n=_rows_of(story, words))
        blocks.append(Chart(words("drift.strength"), text, _strength_chart(words)))
    blocks.append(_period_table(story, words))
    blocks += _noted(story, words)
    data: dict[str, Rows] = {"periods": periods, "drift": effects}
    return Section(
        "drift", words("drift"), tuple(blocks), {name_: rows for name_, rows in data.items() if rows}
    )


def _rows_of(story: Story, words: Words) -> str:
    return span([each.drift.num_rows_batch for each in story.periods if each.drift], words)


def _period_rows(story: Story, words: Words) -> Iterator[dict]:
    for place, each in enumerate(story.periods):
        value = each.value
        known = value is not None and math.isfinite(value.value)
        has_ends = known and value is not None and math.isfinite(value.low)
        yield {
            "place": place,
            "period": each.label,
            "time": each.time,
            "metric": each.metric,
            "value": value.value if known and value else None,
            "low": value.low if has_ends and value else None,
            "high": value.high if has_ends and value else None,
            "n": value.n if value else 0,
            "decision": words(f"drift.decision.{each.decision}"),
            "event": words(f"drift.event.{each.event}"),
            "trained": each.event in _TRAINED,
        }


def _effect_rows(story: Story, words: Words) -> Iterator[dict]:
    for place, each in enumerate(story.periods):
        for effect in each.drift.effects if each.drift else ():
            yield {
                "place": place,
                "period": each.label,
                "kind": words(f"drift.kind.{effect.kind}"),
                "subject": effect.subject,
                "measure": effect.measure,
                "value": effect.value,
                "usual": effect.usual,
                "strength": effect.strength,
            }


def _periods_axis(words: Words) -> Spec:
    return name(
        "period", words("drift.period"), sort={"field": "place"}, axis={"labelAngle": -35, "labelLimit": 110}
    )


def _metric_chart(title: str, periods: list[dict], words: Words) -> Spec:
    x, y = _periods_axis(words), quantity("value", title, scale={"zero": False, "padding": 12})
    decisions = [words(f"drift.decision.{each}") for each in _DECISIONS]
    apart = told_apart("decision", decisions)
    apart["color"]["scale"]["range"] = [GREEN, ORANGE, RED, PURPLE]
    shown = tooltip(
        ("period", words("drift.period"), ""),
        ("value", title, ".3~g"),
        ("n", words("kpis.n"), ","),
        ("decision", words("drift.decision"), ""),
        ("event", words("drift.event"), ""),
    )
    trained: Spec = {
        "transform": [{"filter": "datum.trained"}],
        "mark": {"type": "rule", "color": PURPLE, "strokeWidth": 2, "strokeDash": [2, 3]},
        "encoding": {"x": x, "tooltip": shown},
    }
    has_value = [{"filter": "isValid(datum.value)"}]
    line: Spec = {
        "transform": has_value,
        "mark": {"type": "line", "color": MUTED, "strokeWidth": 1},
        "encoding": {"x": x, "y": y},
    }
    bars = whisker(x, y, "low", "high", color=MUTED)
    bars["transform"] = [{"filter": "isValid(datum.low)"}]
    dots: Spec = {
        "transform": has_value,
        "mark": {"type": "point", "size": 110, "filled": True, "opacity": 1},
        "encoding": {"x": x, "y": y, "tooltip": shown, **apart},
    }
    has_ends = any(row["low"] is not None for row in periods)
    return chart("periods", [trained, line, *([bars] if has_ends else []), dots], 260)


def _strength_chart(words: Words) -> Spec:
    x = _periods_axis(words)
    y = quantity(
        "strongest", words("drift.limit"), scale={"type": "symlog", "constant": 1}, axis={"format": ".2~g"}
    )
    kinds = [words(f"drift.kind.{kind}") for kind in _KINDS]
    apart = told_apart("kind", kinds)
    shown = tooltip(
        ("period", words("drift.period"), ""),
        ("kind", words("drift.kind"), ""),
        ("subject", words("drift.subject"), ""),
        ("strongest", words("drift.limit"), ".2~f"),
    )
    strongest = [
        {
            "aggregate": [
                {"op": "max", "field": "strength", "as": "strongest"},
                {"op": "argmax", "field": "strength", "as": "top"},
            ],
            "groupby": ["place", "period", "kind"],
        },
        {"calculate": "datum.top.subject", "as": "subject"},
    ]
    marks: list[Spec] = [
        {
            "transform": strongest,
            "mark": {"type": "line", "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y, "color": apart["color"]},
        },
        {
            "transform": strongest,
            "mark": {"type": "point", "size": 80, "filled": True, "opacity": 1},
            "encoding": {"x": x, "y": y, "tooltip": shown, **apart},
        },
    ]
    return chart("drift", [level(1.0, color=INK), *marks], 240)


def _period_table(story: Story, words: Words) -> Table:
    head = tuple(words(f"drift.{each}") for each in ("period", "decision", "event"))
    head = (head[0], words("kpis.value"), *head[1:], words("drift.noted"))
    rows = tuple(
        (
            Cell(each.label, note=words("drift.this") if each.is_this else ""),
            Cell(_value(each, words), "number"),
            Cell(words(f"drift.decision.{each.decision}")),
            Cell(words(f"drift.event.{each.event}")),
            Cell(_moved(each.drift, words)),
        )
        for each in story.periods
    )
    return Table(words("drift.table"), head, rows)


def _value(period: Period, words: Words) -> str:
    value = period.value
    if value is None or math.isnan(value.value):
        return words("unmeasured")
    shown = between(value.value, value.low, value.high)
    return f"{words(f'kpi.{period.metric}')} {shown} (n = {value.n})"


def _moved(report: DriftReport | None, words: Words) -> str:
    subjects = list(dict.fromkeys(effect.subject for effect in report.noted)) if report else []
    rest = len(subjects) - 3
    shown = [*subjects[:3], *([words("and_more", count=rest)] if rest > 0 else [])]
    return listed(shown, words) if shown else "\N{EN DASH}"


def _noted(story: Story, words: Words) -> list[Table]:
    """What moved in this run's own period, or in the last one that says so."""
    own = [each for each in story.periods if each.is_this and each.drift]
    reports = [each.drift for each in own or story.periods if each.drift]
    if not reports or not reports[-1].noted:
        return []
    head = tuple(words(f"drift.{each}") for each in ("subject", "kind", "measure", "limit", "usual"))
    rows = tuple(
        (
            Cell(effect.subject),
            Cell(words(f"drift.kind.{effect.kind}")),
            Cell(f"{words(f'drift.measure.{effect.measure}')}: {number(effect.value)}"),
            Cell(number(effect.strength), "number"),
            Cell(number(effect.usual), "number"),
        )
        for effect in reports[-1].noted[:_MOST]
    )
    return [Table(words("drift.noted"), head, rows)]
