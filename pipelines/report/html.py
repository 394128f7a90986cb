"""The page as one file: no network, no second file, nothing of the data obeyed.

The only scripts that run are those written here, by their hashes, and none of them makes code of text: Vega
walks its expressions (`ast` in page.js) and compiles none. Specifications hold no text of the data.
"""

import base64
import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.escaping import printable
from pipelines.report.compose import compose
from pipelines.report.page import Chart, Page
from pipelines.report.story import Story
from pipelines.report.words import Language, Words

_ASSETS = Path(__file__).parent / "assets"
_MOUNT = "window.vegaEmbed = vegaEmbed;"


def html_of(story: Story, language: Language) -> str:
    """The whole page."""
    words = Words(language)
    page = compose(story, words)
    scripts = (vega(), _asset("page.js"))
    return _template().render(
        page=page,
        words=words,
        style=Markup(_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        charts=_charts(page),
        data=_json(_data(page)),
        specs=_json({key: chart.spec for key, chart in _charts(page).items()}),
    )


@cache
def vega() -> str:
    """Vega, Vega-Lite and their embedding, as vl-convert brings them; seconds, once per process."""
    import vl_convert

    script = vl_convert.javascript_bundle(_MOUNT)
    return script.replace("</script", "<\\/script")


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_ASSETS)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    return environment.get_template("page.html.j2")


def _shown(value: Any) -> Any:
    """Text of the data without characters that turn other text around or hide; our own markup as it is."""
    return printable(value) if type(value) is str else value


def _policy(scripts: tuple[str, ...]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _charts(page: Page) -> dict[str, Chart]:
    """By the id that they have on the page."""
    found: dict[str, Chart] = {}
    for section in page.sections:
        charts = [block for block in section.blocks if isinstance(block, Chart)]
        found |= {f"{section.id}-{number}": chart for number, chart in enumerate(charts)}
    return found


def _data(page: Page) -> dict[str, Any]:
    return {name: list(rows) for section in page.sections for name, rows in section.data.items()}


def _json(value: Any) -> str:
    """JSON that no parser of HTML takes for markup; what is no number is null."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return printable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
