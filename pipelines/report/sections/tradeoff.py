"""Accuracy, latency and memory over budgets; and how both costs grow with the length of a sequence."""

import math
from collections.abc import Iterator

from pipelines.budgets import Calibration, Cost
from pipelines.cost import Timings
from pipelines.report.charts import (
    INK,
    MUTED,
    ORANGE,
    chart,
    level,
    logarithmic,
    quantity,
    told_apart,
    tooltip,
    whisker,
)
from pipelines.report.figures import between, listed, mib, number, percent
from pipelines.report.page import Cell, Chart, Note, Section, Spec, Table, missing
from pipelines.report.story import Story
from pipelines.report.words import Words
from validation.kpis import KINDS
from validation.statistics import Interval

_ENDS = {"latency": ("latency_low", "latency_high"), "memory": ("memory",)}
_SHARES = (0.05, 0.95)  # of the inferences at one length, whose range is drawn


def tradeoff(story: Story, words: Words) -> Section:
    table = story.calibration
    if table is None or not table.points:
        why = words("tradeoff.dense" if story.is_dense else "tradeoff.none")
        return Section("tradeoff", words("tradeoff"), (missing(why),))
    where = table.conditions
    intro = words(
        "tradeoff.intro",
        windows=table.num_windows,
        timings=where.num_timings,
        steps=f"{where.num_steps:,}",
        machine=where.machine,
    )
    rows, baseline = list(_points(story, table, words)), _baseline_gain(story)
    charts = tuple(_chart(kind, words, table, baseline) for kind in ("latency", "memory"))
    older = (Note(words("tradeoff.older")),) if story.kind == "retraining" else ()
    notes = (Note(intro), Note(words("tradeoff.legend")), *older)
    blocks = (*notes, *charts, _budget_table(table, story, words))
    return Section("tradeoff", words("tradeoff"), blocks, {"budgets": rows})


def _points(story: Story, table: Calibration, words: Words) -> Iterator[dict]:
    """Gains in percent of dense's metric, better above 0."""
    yield {
        "role": words("tradeoff.role.dense"),
        "budget": percent(1.0),
        "label": words("tradeoff.role.dense"),
        "density": 1.0,
        "metric": table.dense_metric,
        "gain": 0.0,
        "gain_low": 0.0,
        "gain_high": 0.0,
        **_costs(table.dense_cost),
        "n": table.num_windows,
    }
    for point in table.points:
        loss = point.loss
        role = "chosen" if point.density == story.density else "sparse"
        yield {
            "role": words(f"tradeoff.role.{role}"),
            "budget": percent(point.density),
            "label": percent(point.density),
            "density": point.density,
            "metric": point.task_metric,
            "gain": -100 * loss.value,
            "gain_low": -100 * loss.high,
            "gain_high": -100 * loss.low,
            **_costs(point.cost),
            "n": table.num_windows,
        }


def _costs(cost: Cost) -> dict[str, float]:
    return {
        "latency": cost.latency_p50_ms.value,
        "latency_low": cost.latency_p50_ms.low,
        "latency_high": cost.latency_p50_ms.high,
        "p90": cost.latency_p90_ms.value,
        "memory": mib(cost.peak_memory_bytes.value),
    }


def _baseline_gain(story: Story) -> float | None:
    """The simple baseline against dense, in percent, on the windows that both were judged on."""
    by_role = {each.role: each for each in story.how_good}
    if not {"dense", "baseline"} <= by_role.keys():
        return None
    metric, dense = next(iter(by_role["dense"].metrics.items()))
    gain = by_role["baseline"].metrics[metric].value - dense.value
    return 100 * (gain if KINDS[metric].higher_is_better else -gain) / abs(dense.value)


def _chart(kind: str, words: Words, table: Calibration, baseline: float | None) -> Chart:
    axis = words("tradeoff.p50" if kind == "latency" else "tradeoff.peak")
    gain = words("tradeoff.gain", kpi=words(f"kpi.{table.points[0].metric}"))
    x = quantity(kind, axis, scale={"zero": False, "nice": True, "padding": 48})
    y = quantity("gain", gain, scale={"padding": 14})
    roles = [words(f"tradeoff.role.{role}") for role in ("sparse", "chosen", "dense")]
    colour = told_apart("role", roles)
    colour["color"]["scale"]["range"] = ["var(--blue)", "var(--orange)", "var(--ink)"]
    colour["shape"]["scale"]["range"] = ["circle", "circle", "diamond"]
    shown = tooltip(
        ("budget", words("tradeoff.budget"), ""),
        ("gain", gain, ".2f"),
        (kind, axis, ".1f"),
        ("n", words("kpis.n"), ","),
    )
    is_chosen = {"filter": {"field": "role", "equal": roles[1]}}
    layers: list[Spec] = [level(0.0, strokeDash=[1, 0], opacity=0.6)]
    if baseline is not None:
        layers.append(level(baseline))
    bars = whisker(x, y, "gain_low", "gain_high", color=MUTED, strokeWidth=1.5)
    layers += [
        *([bars] if any(math.isfinite(point.loss.low) for point in table.points) else []),
        {
            "transform": [is_chosen],
            "mark": {"type": "point", "size": 330, "filled": False, "strokeWidth": 2.5, "color": ORANGE},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "point", "size": 90, "filled": True, "opacity": 1},
            "encoding": {"x": x, "y": y, "tooltip": shown, **colour},
        },
        *_labels(kind, x, y, roles[2]),
    ]
    text = words("tradeoff.text", windows=table.num_windows, timings=table.conditions.num_timings)
    return Chart(words(f"tradeoff.{kind}"), text, chart("budgets", layers, 280))


def _labels(kind: str, x: Spec, y: Spec, dense: str) -> Iterator[Spec]:
    """Each budget beside its point, on the side where the next one is farther away."""
    budgets = {"filter": {"not": {"field": "role", "equal": dense}}}  # its diamond is named above the chart
    besides = [{"op": op, "field": kind, "as": op} for op in ("lag", "lead")]
    place = {"window": besides, "sort": [{"field": kind}]}
    is_left = f"isValid(datum.lead) && (!isValid(datum.lag) || 2 * datum.{kind} > datum.lag + datum.lead)"
    for align, dx, test in (("right", -12, is_left), ("left", 12, f"!({is_left})")):
        yield {
            "transform": [budgets, place, {"filter": test}],
            "mark": {"type": "text", "align": align, "dx": dx, "color": INK, "fontSize": 12},
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        }


def _budget_table(table: Calibration, story: Story, words: Words) -> Table:
    head = tuple(words(f"tradeoff.{each}") for each in ("budget", "blocks"))
    metric = words(f"kpi.{table.points[0].metric}")
    head += (
        words("tradeoff.metric", kpi=metric, n=table.num_windows),
        words("tradeoff.gain", kpi=metric),
        *(words(f"tradeoff.{each}") for each in ("p50", "p90", "peak")),
    )
    dense = table.dense_cost
    rows = [
        (
            Cell(f"{words('tradeoff.role.dense')}"),
            Cell("\N{EN DASH}", "number"),
            Cell(number(table.dense_metric), "number"),
            Cell("0", "number"),
            *_cost_cells(dense),
        )
    ]
    for point in table.points:
        loss, is_chosen = point.loss, point.density == story.density
        gain = between(-100 * loss.value, -100 * loss.high, -100 * loss.low, sign=True)
        rows.append(
            (
                Cell(percent(point.density), note=words("tradeoff.role.chosen") if is_chosen else ""),
                Cell(str(point.num_selected), "number"),
                Cell(number(point.task_metric), "number"),
                Cell(gain, "number"),
                *_cost_cells(point.cost),
            )
        )
    return Table(words("tradeoff"), head, tuple(rows), is_titled=False)


def _cost_cells(cost: Cost) -> tuple[Cell, ...]:
    return (
        Cell(_spread(cost.latency_p50_ms), "number"),
        Cell(_spread(cost.latency_p90_ms), "number"),
        Cell(number(mib(cost.peak_memory_bytes.value)), "number"),
    )


def _spread(interval: Interval) -> str:
    return between(interval.value, interval.low, interval.high)


# by length ----------------------------------------------------------------------------------------


def scaling(story: Story, words: Words) -> Section:
    if not story.costs:
        return Section("scaling", words("scaling"), (missing(words("scaling.none")),))
    where = story.costs[0].dense.device
    machine = story.environment.gpu or story.environment.cpu if story.environment else where
    intro = words("scaling.intro", machine=machine, least=story.min_timings)
    rows = [
        _length(timings, words(f"scaling.side.{side}"), story.min_timings)
        for cost in story.costs
        for side, timings in (("candidate", cost.candidate), ("dense", cost.dense))
    ]
    kinds = ("latency", "memory") if len(story.costs) > 1 else ()  # one length shows no growth
    charts = tuple(_length_chart(kind, rows, words) for kind in kinds)
    blocks = (Note(intro), *charts, _length_table(story, words))
    return Section("scaling", words("scaling"), blocks, {"lengths": rows})


def _length(timings: Timings, side: str, least: int) -> dict:
    many = len(timings.latency_ms) >= least
    middle = timings.latency_quantile(0.5)
    low, high = (timings.latency_quantile(share) for share in _SHARES) if many else (middle, middle)
    return {
        "side": side,
        "steps": timings.num_steps,
        "latency": middle,
        "latency_low": low,
        "latency_high": high,
        "memory": mib(max(timings.memory_bytes)),
        "inferences": len(timings.latency_ms),
        "processes": len(timings.memory_bytes),
        "threads": timings.threads,
        "device": timings.device,
    }


def _length_chart(kind: str, rows: list[dict], words: Words) -> Chart:
    title = words("scaling.ms" if kind == "latency" else "tradeoff.peak")
    lengths = sorted({row["steps"] for row in rows})
    scale = {"type": "log", "base": 2, "domain": [lengths[0] / 1.3, lengths[-1] * 1.3], "nice": False}
    x = quantity("steps", words("scaling.steps"), scale=scale, axis={"format": ",", "values": lengths})
    y = logarithmic(kind, title, [row[each] for row in rows for each in _ENDS[kind]])
    apart = told_apart("side", [words(f"scaling.side.{side}") for side in ("candidate", "dense")])
    count = "inferences" if kind == "latency" else "processes"
    shown = tooltip(
        ("side", words("scaling.side"), ""),
        ("steps", words("scaling.steps"), ","),
        (kind, title, ",.1f"),
        (count, words("kpis.n"), ","),
    )
    layers: list[Spec] = [
        {"mark": {"type": "line"}, "encoding": {"x": x, "y": y, "color": apart["color"]}},
        {
            "mark": {"type": "point", "size": 80, "filled": True, "opacity": 1},
            "encoding": {"x": x, "y": y, "tooltip": shown, **apart},
        },
    ]
    if kind == "latency":
        bars = whisker(x, y, "latency_low", "latency_high")
        bars["encoding"]["color"] = apart["color"]
        layers.insert(1, bars)
    counts = listed([f"{row[count]:,}" for row in rows if row["side"] == rows[0]["side"]], words)
    text = words(
        "scaling.text", n=words(f"counted.{'timings' if kind == 'latency' else 'processes'}", n=counts)
    )
    return Chart(words(f"scaling.{kind}"), text, chart("lengths", layers, 260))


def _length_table(story: Story, words: Words) -> Table:
    sides = [words(f"scaling.side.{side}") for side in ("candidate", "dense")]
    unit = words("scaling.ms")
    head = (
        words("scaling.steps"),
        *(f"{unit} \N{MIDDLE DOT} {side}" for side in sides),
        words("scaling.ratio"),
        words("scaling.memory_ratio"),
        words("scaling.n"),
    )
    rows = []
    for cost in story.costs:
        ratio = cost.latency_p50_ratio
        has_ends = ratio.n >= story.min_timings
        shown = between(ratio.value, ratio.low, ratio.high) if has_ends else number(ratio.value)
        rows.append(
            (
                Cell(f"{cost.num_steps:,}", "number"),
                Cell(number(cost.candidate.latency_quantile(0.5)), "number"),
                Cell(number(cost.dense.latency_quantile(0.5)), "number"),
                Cell(shown, "number", note="" if has_ends else words("no_interval")),
                Cell(number(cost.peak_memory_ratio.value), "number"),
                Cell(f"{len(cost.candidate.latency_ms):,}", "number"),
            )
        )
    return Table(words("scaling"), head, tuple(rows), is_titled=False)
