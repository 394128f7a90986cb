"""Vega-Lite specifications. No name or value of the data is ever part of one: those are rows, by name.

Colours are variables of the style sheet, so that light, dark and print need no other chart. The palette is
Okabe and Ito's, which colour-blind people tell apart; marks differ in shape or dash as well.
"""

from collections.abc import Iterable, Sequence
from math import ceil, floor, log10
from typing import Any

from pipelines.report.page import Spec

INK, MUTED, GRID, PAPER = "var(--ink)", "var(--muted)", "var(--grid)", "var(--paper)"
BLUE, ORANGE, GREEN, RED = "var(--blue)", "var(--orange)", "var(--green)", "var(--red)"
PURPLE, SKY = "var(--purple)", "var(--sky)"
SERIES = (BLUE, ORANGE, GREEN, PURPLE)
SHAPES = ("circle", "square", "triangle-up", "diamond")
_FONT = "system-ui, 'Hiragino Sans', 'Noto Sans JP', 'Noto Sans CJK JP', 'Yu Gothic UI', Meiryo, sans-serif"

CONFIG: Spec = {
    "background": "transparent",
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelOverlap": "greedy",
        "tickCount": 5,
        "titlePadding": 8,
    },
    "legend": {
        "labelColor": INK,
        "titleColor": MUTED,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "orient": "top",
        "direction": "horizontal",
        "symbolStrokeWidth": 2,
        "labelLimit": 260,
    },
    "rule": {"color": MUTED},
    "point": {"size": 70, "filled": True},
    "line": {"strokeWidth": 2},
}


def chart(data: str, layers: Sequence[Spec], height: int | Spec = 260, **more: Any) -> Spec:
    """Layers over the rows called `data`, as wide as the page lets them."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"name": data},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        "layer": list(layers),
        **more,
    }


def quantity(field: str, title: str | None, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


def decades(values: Iterable[float]) -> list[float]:
    """Round numbers from the decade of the least to that of the most, for a logarithmic axis."""
    known = [value for value in values if value > 0]
    if not known:
        return [1.0, 10.0]
    first, last = floor(log10(min(known))), ceil(log10(max(known)))
    steps = (1, 1.5, 2, 3, 5, 7) if last - first <= 1 else (1, 2, 5) if last - first == 2 else (1,)
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]


def logarithmic(field: str, title: str | None, values: Iterable[float], **more: Any) -> Spec:
    """A little beyond the values at either end."""
    known = [value for value in values if value > 0] or [1.0]
    low, high = min(known) / 1.25, max(known) * 1.25
    marks = [mark for mark in decades(known) if low <= mark <= high]
    scale = {"type": "log", "domain": [low, high], "nice": False}
    return quantity(field, title, scale=scale, axis={"values": marks, "format": ",~r"}, **more)


def name(field: str, title: str | None, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", "title": title, **more}


def time(field: str, title: str | None, **more: Any) -> Spec:
    """A time in milliseconds, shown as it stands in the table, whatever the reader's zone is."""
    scale = {"type": "utc", **more.pop("scale", {})}
    return {"field": field, "type": "temporal", "title": title, "scale": scale, **more}


def told_apart(field: str, names: Sequence[str], title: str | None = None) -> Spec:
    """Colour and shape by the same names, in this order."""
    colour = {"scale": {"domain": list(names), "range": list(SERIES[: len(names)])}}
    shape = {"scale": {"domain": list(names), "range": list(SHAPES[: len(names)])}}
    return {"color": name(field, title, **colour), "shape": name(field, title, **shape)}


def tooltip(*fields: tuple[str, str, str]) -> list[Spec]:
    """(field, title, format) each; "" for text."""
    return [
        {
            "field": field,
            "title": title,
            **({"type": "quantitative", "format": form} if form else {"type": "nominal"}),
        }
        for field, title, form in fields
    ]


def whisker(x: Spec, y: Spec, low: str, high: str, is_upright: bool = True, **mark: Any) -> Spec:
    """An interval as a line from `low` to `high` along the axis of the value."""
    along, other = ("y", "x") if is_upright else ("x", "y")
    place = y if is_upright else x
    ends = {along: {**place, "field": low}, f"{along}2": {"field": high}}
    return {
        "mark": {"type": "rule", "strokeWidth": 2, "color": BLUE, **mark},
        "encoding": {other: x if is_upright else y, **ends},
    }


def level(value: float, axis: str = "y", **mark: Any) -> Spec:
    """A line across the chart at one value."""
    return {
        "data": {"values": [{"at": value}]},
        "mark": {"type": "rule", "strokeDash": [5, 4], "color": MUTED, "strokeWidth": 1.5, **mark},
        "encoding": {axis: {"field": "at", "type": "quantitative"}},
    }
