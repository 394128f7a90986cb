"""What a monitored batch showed, in the page's language: from the numbers of its drift report."""

from collections.abc import Iterator

from pipelines.report.figures import between, number
from pipelines.report.story import Story
from pipelines.report.words import Words
from validation.drift import DriftReport, PerformanceChange
from validation.effects import Effect

_MOST = 3  # effects named at the top; the section on drift has all


def moved(story: Story, words: Words) -> tuple[str, ...]:
    """Performance or its estimate, then what moved; nothing where the page's own batch was not compared."""
    own = next((each.drift for each in story.periods if each.is_this and each.drift), None)
    return tuple(_said(own, words)) if own else ()


def _said(report: DriftReport, words: Words) -> Iterator[str]:
    if report.performance is not None:
        yield _performance(report.performance, words)
    elif report.estimate is not None:
        kpi, before = words(f"kpi.{report.estimate.metric}"), number(report.estimate.reference_value)
        yield words("moved.estimate", kpi=kpi, value=number(report.estimate.value), before=before)
    yield from (_effect(effect, words) for effect in report.noted[:_MOST])
    if len(report.noted) > _MOST:
        yield words("and_more", count=len(report.noted) - _MOST)
    if not report.noted:
        yield words("moved.nothing")


def _performance(performance: PerformanceChange, words: Words) -> str:
    change, before = performance.change, number(performance.reference_value)
    shown = between(change.value, change.low, change.high, sign=True)
    return words("moved.performance", kpi=words(f"kpi.{performance.metric}"), change=shown, before=before)


def _effect(effect: Effect, words: Words) -> str:
    measure = f"{words(f'drift.measure.{effect.measure}')} {number(effect.value)}"
    strength = number(effect.strength, decimals=1)
    kind = words(f"drift.kind.{effect.kind}")
    return words("moved.effect", subject=effect.subject, kind=kind, measure=measure, strength=strength)
