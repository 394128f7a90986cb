"""What the model looks at: a window's series or events, with the blocks that were read drawn over it."""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pipelines.clock import to_the_minute
from pipelines.explaining import ReadStep
from pipelines.report.charts import BLUE, INK, MUTED, ORANGE, RED, chart, quantity, time, tooltip
from pipelines.report.figures import number, percent
from pipelines.report.page import Cell, Chart, Note, Rows, Section, Spec, Table, missing
from pipelines.report.story import Story, WindowRead
from pipelines.report.words import Words

_STEPS = 8  # with the most attention, listed for each window


class Block(NamedTuple):
    """One key block over all asked steps of a window; shares of the attention and of the heads."""

    first: str
    last: str
    mass: float
    read_by: float


def looks(story: Story, words: Words) -> Section:
    if not story.windows:
        return Section("attention", words("looks"), (missing(words("looks.none")),))
    blocks: list[Table | Chart | Note] = [Note(words("looks.intro"))]
    data: dict[str, Rows] = {}
    for window in story.windows:
        blocks += _window(window, story.task, words)
        data |= _data(window)
    return Section("attention", words("looks"), tuple(blocks), data)


def _window(window: WindowRead, task: str, words: Words) -> list[Table | Chart | Note]:
    about, exact = window.explanation, exact_mass(window)
    heading = words(
        "looks.heading",
        which=words(f"looks.which.{window.which}"),
        measure=words(f"looks.measure.{window.measure}"),
        loss=number(window.loss),
    )
    said = words(
        "looks.about",
        cutoff=to_the_minute(about.cutoff),
        entity=about.entity,
        n=f"{window.num_windows:,}",
        exact=percent(exact),
        rest=percent(1 - exact),
    )
    span = (_ms(window.times[0]), _ms(window.times[-1]))
    if window.traces:
        reads = [
            Chart(
                words("looks.read", name=trace.name),
                words("looks.read.text", n=f"{len(window.times):,}"),
                _read_chart(window, number_, task, words),
                zoom=span,
            )
            for number_, trace in enumerate(window.traces)
        ]
    else:
        reads = [
            Chart(
                words("looks.events"),
                words("looks.read.text", n=f"{len(window.times):,}"),
                _strip(window, words),
                zoom=span,
            )
        ]
    answer = words(f"looks.answer.{task}", name=window.output, n=f"{len(window.answers):,}")
    answered = Chart(words("looks.answer"), answer, _answer_chart(window, task, words))
    return [Note(heading, "heading"), Note(said), *reads, answered, _steps_table(window, words)]


def exact_mass(window: WindowRead) -> float:
    """Share of the attention that went to steps, over all asked steps."""
    blocks = window.explanation.blocks
    asked = sum(block.num_asked for block in blocks)
    return sum(block.exact_mass * block.num_asked for block in blocks) / max(1, asked)


def blocks_read(window: WindowRead) -> list[Block]:
    """Every key block in order of time, averaged over the asked steps."""
    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for asked in window.explanation.blocks:
        for block in (*asked.blocks, *asked.only_summarized):
            found.setdefault((block.first, block.last), []).append(
                (asked.num_asked, block.mass, block.read_by)
            )
    total = max(1, sum(asked.num_asked for asked in window.explanation.blocks))
    blocks = [
        Block(
            first,
            last,
            sum(n * mass for n, mass, _ in seen) / total,
            sum(n * by for n, _, by in seen) / total,
        )
        for (first, last), seen in found.items()
    ]
    return sorted(blocks)


def _main_steps(window: WindowRead) -> list[ReadStep]:
    """Those with the most attention of all asked blocks; one that several asked for counts once."""
    found: dict[int, ReadStep] = {}
    for block in window.explanation.blocks:
        for step in block.steps:
            if step.row not in found or found[step.row].mass < step.mass:
                found[step.row] = step
    return sorted(found.values(), key=lambda step: -step.mass)[:_STEPS]


# data ---------------------------------------------------------------------------------------------


def _data(window: WindowRead) -> dict[str, Rows]:
    blocks = blocks_read(window)
    most = max((block.mass for block in blocks), default=0.0) or 1.0
    return {
        f"{window.which}_steps": [
            {"t": _ms(at), "time": at, **{f"v{number_}": value for number_, value in enumerate(values)}}
            for at, *values in zip(window.times, *(trace.values for trace in window.traces), strict=True)
        ],
        f"{window.which}_blocks": [
            {
                "from": _ms(block.first),
                "to": _ms(block.last),
                "first": to_the_minute(block.first),
                "last": to_the_minute(block.last),
                "mass": block.mass,
                "read_by": block.read_by,
                "shade": (0.05 + 0.4 * math.sqrt(block.mass / most)) if block.read_by > 0 else 0.0,
            }
            for block in blocks
        ],
        f"{window.which}_marks": [
            {
                "t": _ms(step.time),
                "time": step.time,
                "row": step.row,
                "mass": step.mass,
                **{
                    f"v{number_}": _number(step.values.get(trace.name))
                    for number_, trace in enumerate(window.traces)
                },
            }
            for step in _main_steps(window)
        ],
        f"{window.which}_answers": list(_answer_rows(window)),
    }


def _answer_rows(window: WindowRead) -> Iterator[dict]:
    for place, answer in enumerate(window.answers):
        yield {
            "step": place,
            "t": _ms(answer.time),
            "time": answer.time,
            "said": answer.score,
            "came": answer.truth,
        }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _ms(text: str) -> float:
    """Milliseconds since 1970 of a time that names no zone."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000


# charts -------------------------------------------------------------------------------------------


def _time_axis(window: WindowRead, words: Words) -> Spec:
    """The part that is looked at: `start` and `end` are moved by the buttons below the chart."""
    return time(
        "t",
        words("looks.time"),
        scale={"domainMin": {"expr": "start"}, "domainMax": {"expr": "end"}, "nice": False},
        axis={"format": "%m-%d %H:%M", "labelAngle": 0},
    )


def _bands(window: WindowRead, x: Spec, words: Words) -> Spec:
    shown = tooltip(
        ("first", words("looks.from"), ""),
        ("last", words("looks.to"), ""),
        ("mass", words("looks.mass"), ".1%"),
        ("read_by", words("looks.read_by"), ".0%"),
    )
    return {
        "data": {"name": f"{window.which}_blocks"},
        "transform": [{"filter": "datum.read_by > 0"}],
        "mark": {"type": "rect", "color": ORANGE, "clip": True, "stroke": ORANGE, "strokeOpacity": 0.8},
        "encoding": {
            "x": {**x, "field": "from"},
            "x2": {"field": "to"},
            "opacity": {"field": "shade", "type": "quantitative", "scale": None, "legend": None},
            "tooltip": shown,
        },
    }


def _framed(window: WindowRead, layers: Sequence[Spec], height: int) -> Spec:
    start, end = _ms(window.times[0]), _ms(window.times[-1])
    params = [{"name": "start", "value": start}, {"name": "end", "value": end}]
    return chart(f"{window.which}_steps", layers, height, params=params)


def _read_chart(window: WindowRead, trace: int, task: str, words: Words) -> Spec:
    field, x = f"v{trace}", _time_axis(window, words)
    # The column's name is the chart's heading: no text of the data is part of a specification.
    y = quantity(field, None, scale={"zero": False})
    shown = tooltip(("time", words("looks.time"), ""), ("mass", words("looks.mass"), ".2%"))
    line: Spec = {
        "mark": {"type": "line", "clip": True, "color": BLUE, "strokeWidth": 1, "opacity": 0.55},
        "transform": [{"filter": f"isValid(datum.{field})"}],
        "encoding": {"x": x, "y": y},
    }
    layers: list[Spec] = [
        _bands(window, x, words),
        {
            "mark": {"type": "point", "clip": True, "color": BLUE, "size": 9, "filled": True, "opacity": 0.8},
            "transform": [{"filter": f"isValid(datum.{field})"}],
            "encoding": {
                "x": x,
                "y": y,
                "tooltip": tooltip(("time", words("looks.time"), ""), (field, words("looks.value"), ",.4~g")),
            },
        },
        {
            "data": {"name": f"{window.which}_marks"},
            "transform": [{"filter": f"isValid(datum.{field})"}],
            "mark": {
                "type": "point",
                "clip": True,
                "shape": "triangle-down",
                "size": 130,
                "color": RED,
                "filled": True,
                "opacity": 1,
                "stroke": "var(--paper)",
            },
            "encoding": {"x": x, "y": y, "tooltip": shown},
        },
    ]
    if task != "event":  # nothing lies between two events
        layers.insert(1, line)
    return _framed(window, layers, 220)


def _strip(window: WindowRead, words: Words) -> Spec:
    """An event log without a number to draw: a tick for each event."""
    x = _time_axis(window, words)
    ticks: Spec = {
        "mark": {"type": "tick", "clip": True, "color": BLUE, "thickness": 1, "height": 40},
        "encoding": {"x": x, "tooltip": tooltip(("time", words("looks.time"), ""))},
    }
    return _framed(window, [_bands(window, x, words), ticks], 90)


def _answer_chart(window: WindowRead, task: str, words: Words) -> Spec:
    x = time("t", words("looks.time"), axis={"format": "%m-%d %H:%M", "labelAngle": 0})
    said, came = words("looks.said"), words("looks.came")
    title = said if task != "event" else None
    scale = {"domain": [0, 1]} if task == "event" else {"zero": False}
    shown = tooltip(("time", words("looks.time"), ""), ("said", said, ".3~g"), ("came", came, ".3~g"))
    y = quantity("said", title, scale=scale, axis={"format": "%"} if task == "event" else {})
    line: Spec = {"mark": {"type": "line", "color": BLUE, "strokeWidth": 1.2}, "encoding": {"x": x, "y": y}}
    if task == "forecast":
        truth: Spec = {
            "mark": {"type": "line", "color": INK, "strokeDash": [4, 3]},
            "encoding": {"x": x, "y": {**y, "field": "came"}},
        }
        hover: Spec = {
            "mark": {"type": "point", "size": 30, "color": BLUE},
            "encoding": {"x": x, "y": y, "tooltip": shown},
        }
        return chart(f"{window.which}_answers", [truth, line, hover], 200)
    dots: Spec = {
        "mark": {"type": "point", "size": 16, "color": MUTED, "filled": False},
        "encoding": {"x": x, "y": y, "tooltip": shown},
    }
    hits: Spec = {
        "transform": [{"filter": "datum.came > 0.5"}],
        "mark": {"type": "point", "shape": "diamond", "size": 90, "color": RED, "filled": True, "opacity": 1},
        "encoding": {"x": x, "y": y, "tooltip": shown},
    }
    return chart(f"{window.which}_answers", [line, dots, hits] if task == "detect" else [dots, hits], 200)


def _steps_table(window: WindowRead, words: Words) -> Table:
    head = tuple(words(f"looks.{each}") for each in ("time", "mass", "known"))
    rows = tuple(
        (Cell(to_the_minute(step.time)), Cell(percent(step.mass, 2), "number"), Cell(_known(step)))
        for step in _main_steps(window)
    )
    return Table(words("looks.steps"), head, rows, is_folded=True)


def _known(step: ReadStep) -> str:
    return "; ".join(
        f"{name} {'?' if value is None else f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in step.values.items()
    )
