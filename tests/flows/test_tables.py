"""What a rollout prints: no interval that is none, and what a month's data allowed."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from flows.tables import _costs, _months
from pipelines.cost import CostComparison, Timings
from pipelines.replay import Month
from validation.data import DataReport
from validation.drift import DriftReport
from validation.gates import Outcome
from validation.statistics import Interval


def printed(show: Any, **summary: Any) -> list[str]:
    """The table, line by line, with every run of blanks as one."""
    output = io.StringIO()
    show(Console(file=output, width=200), SimpleNamespace(**summary))
    return [" ".join(line.split()) for line in output.getvalue().splitlines()]


def cost(num_steps: int, num_timings: int) -> CostComparison:
    side = Timings(
        subject="candidate",
        num_steps=num_steps,
        density=None,
        latency_ms=(2.0,) * num_timings,
        memory_bytes=(1e8, 1e8),
        device="cpu",
        threads=1,
    )
    ratio = Interval(value=0.5, low=0.4, high=0.6, n=num_timings, confidence=0.95)
    return CostComparison(
        num_steps=num_steps,
        candidate=side,
        dense=side,
        latency_p50_ratio=ratio,
        latency_p99_ratio=ratio,
        peak_memory_ratio=ratio,
    )


def test_too_few_timings_are_shown_without_an_interval() -> None:
    shown = printed(_costs, costs=(cost(80, 20), cost(320, 19), cost(1280, 2)), min_timings=20)
    few = "0.50, too few for an interval"
    assert any("ratio [interval]" in line for line in shown)  # a name in brackets is no markup
    assert "│ 80 │ 2.0 ms │ 2.0 ms │ 0.50 [0.40, 0.60] │ 0.50 │ 20 │" in shown
    assert f"│ 320 │ 2.0 ms │ 2.0 ms │ {few} │ 0.50 │ 19 │" in shown
    assert f"│ 1,280 │ 2.0 ms │ 2.0 ms │ {few} │ 0.50 │ 2 │" in shown


def month(outcome: Outcome, **changes: Any) -> Month:
    data = DataReport(
        suite="pump-2024-06",
        num_expectations=14,
        num_rows=720,
        failures=(),
        num_quarantined=20,
        quarantine_uri=None,
        docs_uri="index.html",
        outcome=outcome,
        reason="2.78% of rows quarantined",
    )
    drift = DriftReport(decision="retrain", reasons=(), num_rows_reference=9, num_rows_batch=9)
    value = Interval(value=0.8, low=0.7, high=0.9, n=40, confidence=0.95)
    return Month(
        month="2024-06", champion="a" * 64, data=data, metric="auroc", value=value, drift=drift, **changes
    )


def test_a_month_shows_what_its_data_came_to_and_that_nobody_was_judged_on_them() -> None:
    why = "data FAIL: 2.78% of rows quarantined"
    broken = month(Outcome.FAIL, not_judged=why, waiting="c" * 64)
    *_, passed, failed, _ = printed(_months, months=(month(Outcome.PASS, retrained="b" * 64), broken))
    assert passed.startswith("│ 2024-06 │ PASS │ aaaaaaaa │")
    assert passed.endswith("│ retrained │")
    assert failed.startswith("│ 2024-06 │ FAIL │ aaaaaaaa │")
    assert failed.endswith(f"│ nobody judged, {why}; challenger cccccccc waits │")
