"""The verdict and its facts in Markdown, for where a whole page cannot be shown."""

from pipelines.escaping import markdown
from pipelines.report.page import Page


def brief(page: Page, place: str) -> str:
    """`place` is where the whole page is: an address becomes a link."""
    verdict = page.verdict
    details = [f"- {markdown(each)}" for each in verdict.details or verdict.record]
    facts = [f"- {markdown(f'{name}: {value}')}" for name, value in verdict.facts]
    link = f"[{markdown(page.heading)}]({place})" if place.startswith("http") else f"`{place}`"
    head = f"# {markdown(page.title)}: {markdown(verdict.label)}"
    parts = [head, f"**{markdown(verdict.sentence)}**", markdown(verdict.lead)]
    parts += ["\n".join(details), "\n".join(facts), link]
    return "\n\n".join(part for part in parts if part)
