"""The verdict and its facts in Markdown, for where a whole page cannot be shown."""

from pipelines.escaping import markdown
from pipelines.report.page import Page

_BETWEEN = " \N{MIDDLE DOT} "


def brief(page: Page, place: str) -> str:
    """`place` is where the whole page is: an address becomes a link."""
    verdict = page.verdict
    details = [f"- {markdown(each)}" for each in verdict.details or verdict.record]
    gates = [markdown(f"{rung.title} ({rung.gate})") for rung in page.ladder if rung.outcome]
    facts = [f"{markdown(name)}: **{markdown(value)}**" for name, value in verdict.facts]
    link = f"[{markdown(page.heading)}]({place})" if place.startswith("http") else f"`{place}`"
    head = f"# {markdown(page.title)}: {markdown(verdict.label)}"
    parts = [head, f"**{markdown(verdict.sentence)}**", markdown(verdict.lead)]
    parts += ["\n".join(details), _BETWEEN.join(gates), _BETWEEN.join(facts), link]
    return "\n\n".join(part for part in parts if part)
