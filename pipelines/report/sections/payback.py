"""Does the change pay for itself, and what does the answer hang on?"""

import math

from pipelines.payback import Payback
from pipelines.report.charts import BLUE, INK, ORANGE, chart, level, logarithmic, name, tooltip
from pipelines.report.figures import confidence, number
from pipelines.report.page import Cell, Chart, Note, Section, Spec, Table, missing
from pipelines.report.story import Story
from pipelines.report.words import Words

_DAYS_OF_A_YEAR = 365.25
_ROW = 34  # pixels for each input


def payback(story: Story, words: Words) -> Section:
    repaid = story.payback
    if repaid is None:
        why = words("payback.dense" if story.is_dense else "payback.none")
        return Section("payback", words("payback"), (missing(why),))
    notes = [Note(_answer(repaid, words))]
    if story.prices is not None and story.prices.are_examples:
        notes.append(Note(words("payback.examples"), "missing"))
    rows = _rows(repaid, words)
    drawn = [row for row in rows if row["days"] is not None and row["days"] > 0]
    charts = [_chart(repaid, story, words)] if drawn else []
    blocks = (*notes, _inputs(repaid, words), *charts, _table(repaid, words))
    return Section("payback", words("payback"), blocks, {"payback": rows})


def _answer(repaid: Payback, words: Words) -> str:
    if math.isinf(repaid.days):
        return words("payback.no")
    low, high = _days(repaid.low, words), _days(repaid.high, words)
    level_ = confidence(repaid.confidence)
    said = words("payback.yes", days=_days(repaid.days, words), low=low, high=high, confidence=level_)
    years = repaid.days / _DAYS_OF_A_YEAR
    return f"{said} {words('payback.years', years=number(years))}" if years >= 2 else said


def _days(days: float, words: Words) -> str:
    return words("never") if math.isinf(days) else number(days)


def _inputs(repaid: Payback, words: Words) -> Table:
    money = repaid.currency
    rows = (
        ("saved", f"{number(1e3 * repaid.saved_seconds_per_request)}{words('unit.ms')}"),
        ("saved_day", f"{number(repaid.saved_per_day)} {money}"),
        ("devices", f"{repaid.devices_saved:,}"),
        ("upfront", f"{number(repaid.upfront)} {money}"),
        ("answer", f"{_days(repaid.days, words)} [{_days(repaid.low, words)}, {_days(repaid.high, words)}]"),
    )
    cells = tuple((Cell(words(f"payback.{item}")), Cell(amount, "number")) for item, amount in rows)
    return Table(words("payback.inputs"), (words("payback.item"), words("payback.amount")), cells)


def _rows(repaid: Payback, words: Words) -> list[dict]:
    """Long form; None where it never pays."""
    rows = []
    for each in repaid.sensitivity:
        for factor, days in (("half", each.half), ("twice", each.twice)):
            rows.append(
                {
                    "input": words(f"payback.varied.{each.varied}"),
                    "factor": words(f"payback.{factor}"),
                    "days": days if math.isfinite(days) else None,
                    "now": repaid.days if math.isfinite(repaid.days) else None,
                }
            )
    return rows


def _chart(repaid: Payback, story: Story, words: Words) -> Chart:
    y = name("input", None, sort=None, axis={"labelColor": INK, "ticks": False, "domain": False})
    ends = [days for each in repaid.sensitivity for days in (each.half, each.twice) if math.isfinite(days)]
    x = logarithmic("days", words("payback.days"), ends)
    factors = [words("payback.half"), words("payback.twice")]
    colour = {"scale": {"domain": factors, "range": [BLUE, ORANGE]}}
    shape = {"scale": {"domain": factors, "range": ["circle", "square"]}}
    shown = tooltip(
        ("input", words("payback.varied"), ""),
        ("factor", words("payback.factor"), ""),
        ("days", words("payback.days"), ",.4~r"),
    )
    positive = [{"filter": "isValid(datum.days) && datum.days > 0"}]
    layers: list[Spec] = [
        {
            "transform": [*positive, {"filter": "isValid(datum.now)"}],
            "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.5, "color": "var(--grid)"},
            "encoding": {"y": y, "x": x, "x2": {"field": "now"}},
        },
        {
            "transform": positive,
            "mark": {"type": "point", "size": 110, "filled": True, "opacity": 1},
            "encoding": {
                "y": y,
                "x": x,
                "color": name("factor", words("payback.factor"), **colour),
                "shape": name("factor", words("payback.factor"), **shape),
                "tooltip": shown,
            },
        },
    ]
    if math.isfinite(repaid.days) and repaid.days > 0:
        layers.insert(0, level(repaid.days, "x", color=INK))
    text = words("payback.text", n=f"{len(story.costs[0].dense.latency_ms):,}" if story.costs else "?")
    height = _ROW * len(repaid.sensitivity)
    return Chart(words("payback.sensitivity"), text, chart("payback", layers, height))


def _table(repaid: Payback, words: Words) -> Table:
    head = tuple(words(f"payback.{each}") for each in ("varied", "half", "now", "twice"))
    rows = tuple(
        (
            Cell(words(f"payback.varied.{each.varied}")),
            *(Cell(_days(days, words), "number") for days in (each.half, repaid.days, each.twice)),
        )
        for each in repaid.sensitivity
    )
    return Table(words("payback.sensitivity"), head, rows, is_titled=False)
