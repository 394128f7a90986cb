"""Every group by itself, with its n, its interval and its threshold; and the gap between best and worst."""

import math
from collections.abc import Iterable, Iterator, Sequence

from pipelines.report.charts import BLUE, INK, chart, level, name, quantity, tooltip, whisker
from pipelines.report.figures import kpi_value, number
from pipelines.report.page import Cell, Chart, Note, Rows, Section, Spec, Table, missing
from pipelines.report.story import Story
from pipelines.report.words import Words
from validation.kpis import Kpi, Reference
from validation.thresholds import Threshold, bound_of

_MOST = 24  # groups of one chart
_LETTERS = 14  # of a name beside a chart; the table has all
_ROW = 26  # pixels for each
_GAP = "largest_gap"


def slices(story: Story, words: Words) -> Section:
    blocks: list[Chart | Note | Table] = []
    data: dict[str, Rows] = {}
    for place, (column, versus, kpis) in enumerate(families(story)):
        source, rows = f"groups_{place}", list(_rows(kpis, _asked(story, column, versus)))
        data[source] = rows
        title = _title(kpis[0], column, words)
        if len(rows) > _MOST:
            blocks.append(Note(words("slices.only", shown=_MOST, all=len(rows))))
        blocks.append(Chart(title, words("slices.text"), _chart(source, rows, versus, words)))
        blocks.append(_table(title, kpis, words))
    if not blocks:
        return Section("slices", words("slices"), (missing(words("slices.none")),))
    gaps = [each for each in _measured(story) if each.name == _GAP]
    if gaps:
        rows_ = tuple(
            (Cell(each.slice), Cell(kpi_value(each, words), "number"), _count(each)) for each in gaps
        )
        head = (words("slices.group"), words("kpi.largest_gap"), words("kpis.n"))
        blocks.append(Table(words("slices.gap"), head, rows_))
    return Section("slices", words("slices"), (Note(words("slices.intro")), *blocks), data)


def families(story: Story) -> Iterator[tuple[str, Reference | None, list[Kpi]]]:
    """(column, compared with whom, its groups): differences where groups were compared, else values."""
    found: dict[tuple[str, str, Reference | None], list[Kpi]] = {}
    for each in _measured(story):
        if each.slice and each.name != _GAP:
            found.setdefault((each.name, each.slice.split("=")[0], each.versus), []).append(each)
    compared = {(metric, column) for metric, column, versus in found if versus}
    for (metric, column, versus), kpis in found.items():
        if versus or (metric, column) not in compared:
            yield column, versus, sorted(kpis, key=lambda each: (-each.n, each.slice))


def _measured(story: Story) -> Sequence[Kpi]:
    return story.groups or (story.evaluations[-1].kpis if story.evaluations else ())


def _asked(story: Story, column: str, versus: Reference | None) -> Threshold | None:
    """What the last gate asks of the groups of a column, if anything."""
    checks = story.evaluations[-1].verdict.checks if story.evaluations else ()
    asked = (check.threshold for check in checks if check.slice.removeprefix("worst:") == column)
    return next((each for each in asked if each.versus == versus and each.kpi != _GAP), None)


def _title(kpi: Kpi, column: str, words: Words) -> str:
    metric = words(f"kpi.{kpi.name}")
    if kpi.versus is None:
        return words("slices.alone", kpi=metric, column=column)
    return words("slices.of", kpi=metric, column=column, reference=words(f"reference.{kpi.versus}"))


def _rows(kpis: Iterable[Kpi], asked: Threshold | None) -> Iterator[dict]:
    for each in kpis:
        group = each.slice.split("=", 1)[1]
        yield {
            "column": each.slice.split("=")[0],
            "group": group,
            "label": f"{_shortened(group)} (n = {each.n:,})",
            "kpi": each.name,
            "versus": each.versus,
            "value": _finite(each.value),
            "low": _finite(each.low),
            "high": _finite(each.high),
            "n": each.n,
            "judged": each.joint_low is not None,
            "bound": _finite(bound_of(each, asked)) if asked else None,
        }


def _shortened(group: str) -> str:
    return group if len(group) <= _LETTERS else f"{group[: _LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _chart(source: str, rows: list[dict], versus: Reference | None, words: Words) -> Spec:
    metric = words(f"kpi.{rows[0]['kpi']}")
    title = words("slices.difference", kpi=metric) if versus else metric
    x = quantity("value", title, scale={"zero": False, "padding": 10})
    y = name("label", None, sort=None, axis={"labelColor": INK, "ticks": False, "domain": False})
    shown = tooltip(
        ("group", words("slices.group"), ""),
        ("value", title, ".3~g"),
        ("low", "\N{LEFT SQUARE BRACKET}", ".3~g"),
        ("high", "\N{RIGHT SQUARE BRACKET}", ".3~g"),
        ("n", words("kpis.n"), ","),
    )
    whiskers = whisker(x, y, "low", "high", is_upright=False)
    whiskers["transform"] = [{"filter": "isValid(datum.low) && isValid(datum.high)"}]
    bounds: Spec = {
        "transform": [{"filter": "isValid(datum.bound)"}],
        "mark": {"type": "tick", "thickness": 2, "height": 18, "color": INK, "strokeDash": [3, 2]},
        "encoding": {"x": {**x, "field": "bound"}, "y": y},
    }
    fill = {"condition": {"test": "datum.judged", "value": BLUE}, "value": "var(--paper)"}
    dots: Spec = {
        "mark": {
            "type": "point",
            "size": 80,
            "filled": True,
            "opacity": 1,
            "stroke": BLUE,
            "strokeWidth": 1.5,
        },
        "encoding": {"x": x, "y": y, "fill": fill, "tooltip": shown},
    }
    layers = [
        *([level(0.0, "x", strokeDash=[1, 0], opacity=0.6)] if versus else []),
        *_known("low", whiskers, rows),
        *_known("bound", bounds, rows),
        dots,
    ]
    window = [{"window": [{"op": "row_number", "as": "place"}]}, {"filter": f"datum.place <= {_MOST}"}]
    return chart(source, layers, _ROW * min(len(rows), _MOST) + 10, transform=window)


def _known(field: str, layer: Spec, rows: list[dict]) -> list[Spec]:
    """A layer over nothing would have no end to its axis."""
    return [layer] if any(row[field] is not None for row in rows) else []


def _table(title: str, kpis: list[Kpi], words: Words) -> Table:
    head = (words("slices.group"), words("kpis.value"), words("kpis.n"), words("slices.status"))
    rows = tuple(
        (
            Cell(each.slice.split("=", 1)[1]),
            Cell(kpi_value(each, words) if math.isfinite(each.value) else number(None), "number"),
            _count(each),
            Cell(words("slices.judged" if each.joint_low is not None else "slices.small")),
        )
        for each in kpis
    )
    return Table(title, head, rows, is_folded=True)


def _count(kpi: Kpi) -> Cell:
    return Cell(f"{kpi.n:,}", "number")
