"""A story in one language, section by section."""

from collections.abc import Callable

from pipelines.clock import to_the_minute
from pipelines.report.page import Page, Section
from pipelines.report.sections.drift import drift
from pipelines.report.sections.kpis import kpis
from pipelines.report.sections.lineage import lineage
from pipelines.report.sections.looks import looks
from pipelines.report.sections.payback import payback
from pipelines.report.sections.slices import slices
from pipelines.report.sections.tradeoff import scaling, tradeoff
from pipelines.report.sections.verdict import ladder, verdict
from pipelines.report.story import Story
from pipelines.report.words import Words

_ROLLOUT: tuple[Callable[[Story, Words], Section], ...] = (
    kpis,
    tradeoff,
    scaling,
    looks,
    slices,
    drift,
    payback,
    lineage,
)
_OPERATION = (drift, kpis, looks, slices, tradeoff, scaling, payback, lineage)
"""What a retraining or a batch is about comes first."""


def compose(story: Story, words: Words) -> Page:
    sections = _ROLLOUT if story.kind == "rollout" else _OPERATION
    title = words(f"title.{story.kind}")
    return Page(
        language=words.language,
        title=f"{story.dataset} \N{MIDDLE DOT} {title}",
        heading=title,
        description=story.description,
        finished=words("finished", time=to_the_minute(story.finished_at)),
        verdict=verdict(story, words),
        ladder=ladder(story, words),
        sections=tuple(section(story, words) for section in sections),
    )
