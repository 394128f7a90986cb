"""What the gates looked at: every check, its interval against its threshold; and how good each model is."""

import math
from collections.abc import Iterator

from pipelines.report.bars import bar_of
from pipelines.report.figures import (
    allowed,
    between,
    confidence,
    interval,
    kpi_name,
    kpi_value,
    number,
    sample,
)
from pipelines.report.page import Cell, Note, Section, Table, missing
from pipelines.report.reasons import reason_of
from pipelines.report.story import Story
from pipelines.report.words import Words
from validation.gates import Check, Outcome
from validation.kpis import Kpi


def kpis(story: Story, words: Words) -> Section:
    blocks: list[Table | Note] = [Note(words("kpis.intro"))] if story.evaluations else []
    for each in story.evaluations:
        stage, outcome = words(f"stage.{each.stage}"), words(f"outcome.{each.verdict.outcome}")
        blocks.append(Note(words("kpis.stage", stage=stage, outcome=outcome), "heading"))
        blocks += _tables(each.verdict.checks, words)
    blocks += _how_good(story, words)
    rows = {"kpis": list(_rows(story)), "models": list(_model_rows(story))}
    return Section(
        "kpis",
        words("kpis"),
        tuple(blocks) or (missing(words("outcome.missing")),),
        {name: data for name, data in rows.items() if data},
    )


def _tables(checks: tuple[Check, ...], words: Words) -> Iterator[Table]:
    for blessing in ("quality", "serving"):
        own = [check for check in checks if check.blessing == blessing]
        head = tuple(words(f"kpis.{name}") for name in ("kpi", "value", "bar", "allowed", "n", "verdict"))
        if own:
            rows = tuple(_row(check, words) for check in own)
            yield Table(words(f"blessing.{blessing}"), head, rows, is_cards=True)


def _row(check: Check, words: Words) -> tuple[Cell, ...]:
    kpi, severity = check.measured, check.severity
    note = "" if severity == "required" else words(f"kpis.severity.{severity}")
    reason, is_ours = reason_of(check, words)
    reason = "" if check.outcome is Outcome.PASS else reason
    return (
        Cell(kpi_name(check, words), note=kpi.slice if kpi and kpi.slice else ""),
        Cell(kpi_value(kpi, words), "value", note=_level(kpi, words)),
        Cell(_bar_text(check, words), "bar", bar=bar_of(check)),
        Cell(allowed(check, words), "number"),
        Cell(sample(kpi, words) if kpi else "\N{EN DASH}", "number"),
        Cell(
            words(f"outcome.{check.outcome}"),
            "outcome",
            outcome=check.outcome.value,
            note=" \N{MIDDLE DOT} ".join(filter(None, (note, reason))),
            note_language="" if is_ours else "en",
        ),
    )


def _level(kpi: Kpi | None, words: Words) -> str:
    if kpi is None or kpi.confidence is None or kpi.low == kpi.high:
        return ""
    return words("kpis.level", confidence=confidence(kpi.confidence))


def _bar_text(check: Check, words: Words) -> str:
    """What the bar says, for those who do not see it."""
    kpi = check.measured
    if kpi is None:
        return words("unmeasured")
    value = number(kpi.value)
    return words("kpis.bar.text", value=value, interval=interval(kpi, words), allowed=allowed(check, words))


def _how_good(story: Story, words: Words) -> list[Table | Note]:
    if not story.how_good:
        return []
    first = story.how_good[0]
    level = confidence(next(iter(first.metrics.values())).confidence)
    head = (words("good.subject"), *(words(f"kpi.{name}") for name in first.metrics))
    rows = tuple(
        (
            Cell(words(f"reference.{each.role}"), note=each.subject if each.subject != each.role else ""),
            *(Cell(between(of.value, of.low, of.high), "number") for of in each.metrics.values()),
        )
        for each in story.how_good
    )
    about = words("good.intro", n=first.num_windows, part=first.part, confidence=level)
    return [Note(words("good"), "heading"), Note(about), Table(words("good"), head, rows, is_titled=False)]


def _rows(story: Story) -> Iterator[dict]:
    """One row per check, for other programs."""
    for each in story.evaluations:
        for check in each.verdict.checks:
            kpi, asked = check.measured, check.threshold.model_dump(mode="json", exclude_none=True)
            yield {
                "stage": each.stage,
                "blessing": check.blessing,
                "kpi": check.kpi,
                "group": kpi.slice if kpi else check.slice,
                "versus": check.threshold.versus,
                "value": kpi.value if kpi else None,
                "low": kpi.low if kpi else None,
                "high": kpi.high if kpi else None,
                "confidence": kpi.confidence if kpi else None,
                "n": kpi.n if kpi else 0,
                **{name: asked.get(name) for name in ("at_least", "at_most", "margin", "relative_margin")},
                "severity": check.severity,
                "outcome": check.outcome.value,
                "reason": check.reason,
            }


def _model_rows(story: Story) -> Iterator[dict]:
    for each in story.how_good:
        for name, of in each.metrics.items():
            about = {"role": each.role, "subject": each.subject, "part": each.part, "metric": name}
            ends = {"low": of.low, "high": of.high} if not math.isnan(of.low) else {"low": None, "high": None}
            yield {**about, "value": of.value, **ends, "n": each.num_windows}
