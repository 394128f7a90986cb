"""The report as people meet it: in a real browser, wide and narrow, light and dark, in both languages."""

import csv
import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.report.html import html_of
from pipelines.report.words import LANGUAGES, Words
from tests.chromium import Opened, chromium, lacking, open_page
from tests.report_story import story_without_intervals, whole_story

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
SHOTS = Path(os.environ.get("DANKAI_SCREENSHOTS", Path(__file__).parents[2] / ".screenshots"))
VIEWS = (("en", 1440, "light"), ("ja", 375, "dark"), ("en", 375, "light"), ("ja", 1440, "dark"))
pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "there is one")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page in each language, as a file on disk."""
    folder = tmp_path_factory.mktemp("pages")
    for language in LANGUAGES:
        (folder / f"{language}.html").write_text(html_of(whole_story(), language), encoding="utf-8")
    return {language: folder / f"{language}.html" for language in LANGUAGES}


@pytest.fixture(scope="module", params=VIEWS, ids=lambda view: "-".join(map(str, view)))
def opened(request: pytest.FixtureRequest, browser: "Browser", files: dict[str, Path]) -> Iterator[Opened]:
    language, width, scheme = request.param
    opened = open_page(browser, files[language], width, scheme)
    yield opened
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened.page.screenshot(path=SHOTS / f"report-{language}-{width}-{scheme}.png", full_page=True)
    opened.page.context.close()


@pytest.fixture(scope="module")
def wide(browser: "Browser", files: dict[str, Path]) -> Iterator[Opened]:
    """A page for what changes it."""
    opened = open_page(browser, files["en"])
    yield opened
    opened.page.context.close()


def test_it_opens_from_disk_without_a_complaint_and_asks_the_network_for_nothing(opened: Opened) -> None:
    assert opened.complaints == []
    assert opened.requests == []
    assert "unsafe-eval" not in opened.ask("document.querySelector('meta[http-equiv]').content")
    assert "<script>alert" in opened.ask("document.querySelector('.description').textContent")


def test_every_chart_is_drawn_with_marks_that_can_be_seen(opened: Opened) -> None:
    drawn = opened.ask(
        """marks => [...document.querySelectorAll('.plot')].map(plot => [plot.id,
        [...plot.querySelectorAll(marks)].map(mark => mark.getBoundingClientRect())
        .filter(box => box.width + box.height > 1).length])""",
        ".mark-symbol path, .mark-line path, .mark-rect path, .mark-rule line",
    )
    assert len(drawn) == 14
    assert [name for name, marks in drawn if marks < 2] == []
    assert opened.ask("document.querySelectorAll('#attention-0 .mark-rect path').length") >= 4


def test_marks_have_the_palettes_colours_and_not_the_browsers_black(opened: Opened) -> None:
    colours = opened.ask(
        """[...new Set([...document.querySelectorAll('#scaling-0 .mark-symbol path')]
        .map(mark => getComputedStyle(mark).fill))]"""
    )
    dark = opened.ask("matchMedia('(prefers-color-scheme: dark)').matches")
    assert set(colours) >= (
        {"rgb(86, 180, 233)", "rgb(240, 168, 48)"} if dark else {"rgb(0, 114, 178)", "rgb(217, 130, 0)"}
    )


def test_nothing_overflows(opened: Opened) -> None:
    assert opened.ask("document.documentElement.scrollWidth <= innerWidth")
    wider = opened.ask(
        """[...document.querySelectorAll('body *')].filter(each => !each.closest('.table, .heard, .skip, svg')
        && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 90))"""
    )
    assert wider == []
    cut = opened.ask(
        """[...document.querySelectorAll('.plot')].filter(plot => {
        const box = plot.getBoundingClientRect();
        return [...plot.querySelectorAll('text')].map(text => text.getBoundingClientRect())
          .some(at => at.width && (at.right > box.right + 2 || at.left < box.left - 2));
        }).map(plot => plot.id)"""
    )
    assert cut == []


def test_text_can_be_read_on_its_ground(opened: Opened) -> None:
    """WCAG AA: 4.5, or 3 for large text, computed from the colours that are really used."""
    assert opened.ask(CONTRAST) == []


def test_structure_is_what_a_screen_reader_needs(opened: Opened) -> None:
    levels = opened.ask("[...document.querySelectorAll('h1, h2, h3')].map(each => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert opened.ask("[...document.querySelectorAll('th')].filter(each => !each.scope).length") == 0
    assert opened.ask("[...document.querySelectorAll('table')].filter(each => !each.caption).length") == 0
    unnamed = """[...document.querySelectorAll('[role=img], [role=region], [role=group], nav, button, a')]
        .filter(each => !(each.getAttribute('aria-label') || each.textContent.trim()))
        .map(each => each.outerHTML.slice(0, 90))"""
    assert opened.ask(unnamed) == []
    identities = opened.ask("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(identities) == len(set(identities))
    labels = (
        "[...document.querySelectorAll('[aria-labelledby]')].map(at => at.getAttribute('aria-labelledby'))"
    )
    assert set(opened.ask(labels)) <= set(identities)
    assert opened.ask("document.querySelectorAll('[aria-current=step]').length") == 1


def test_every_link_inside_the_page_leads_somewhere(opened: Opened) -> None:
    targets = opened.ask(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(each => each.getAttribute('href').slice(1))"
    )
    assert set(targets) <= set(opened.ask("[...document.querySelectorAll('[id]')].map(each => each.id)"))
    opened.page.click("nav a[href='#payback']")
    is_shown = """() => { const { top } = document.getElementById('payback').getBoundingClientRect();
        return top > -5 && top < innerHeight; }"""
    opened.wait_until(is_shown)


def test_downloads_hold_the_data(wide: Opened, tmp_path: Path) -> None:
    data = json.loads(wide.ask("document.getElementById('data').textContent"))
    wide.ask("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for name in ("kpis", "budgets", "worst_steps", "groups_0"):
        with wide.page.expect_download() as of_csv:
            wide.page.click(f"a[data-rows='{name}'][data-format=csv]")
        with wide.page.expect_download() as of_json:
            wide.page.click(f"a[data-rows='{name}'][data-format=json]")
        assert of_csv.value.suggested_filename == f"{name}.csv"
        of_csv.value.save_as(tmp_path / "rows.csv")
        of_json.value.save_as(tmp_path / "rows.json")
        assert json.loads((tmp_path / "rows.json").read_text()) == data[name]
        with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [list(row.values()) for row in rows] == [
            [_as_csv(row.get(key)) for key in rows[0]] for row in data[name]
        ]
    with wide.page.expect_download() as everything:
        wide.page.click("footer a[data-format=json]")
    everything.value.save_as(tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text()) == data


def _as_csv(value: Any) -> str:
    """As JavaScript writes it; a text that a spreadsheet would calculate is quoted."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}" if value[:1] in "=+-@\t\r" and value else value
    return json.dumps(int(value) if float(value).is_integer() else value).replace("e-0", "e-")


def test_a_window_is_zoomed_and_moved_by_keyboard_and_shown_whole_again(wide: Opened) -> None:
    place, name = "document.getElementById('attention-0')", "#attention .zoom[data-for='attention-0']"
    whole = wide.ask(f"[{place}.dataset.from, {place}.dataset.to].map(Number)")
    labels = f"{place}.querySelector('.role-axis-label').textContent"
    before = wide.ask(labels)
    for action in ("in", "in", "later"):
        wide.page.focus(f"{name} [data-action={action}]")
        wide.page.keyboard.press("Enter")
    shown = wide.ask(f"{place}.dataset.shown.split(' ').map(Number)")
    assert shown[1] - shown[0] == pytest.approx((whole[1] - whole[0]) / 4)
    assert shown[0] > whole[0] + 0.375 * (whole[1] - whole[0])
    wide.wait_until(f"{labels} !== {json.dumps(before)}")
    wide.page.click(f"{name} [data-action=reset]")
    assert wide.ask(f"{place}.dataset.shown.split(' ').map(Number)") == whole


def test_the_way_through_the_page_by_keyboard_can_be_seen(wide: Opened) -> None:
    wide.page.reload()
    wide.page.keyboard.press("Tab")
    assert wide.ask("document.activeElement.className") == "skip"
    assert wide.ask("document.activeElement.getBoundingClientRect().left >= 0")
    for _ in range(14):
        wide.page.keyboard.press("Tab")
        seen = wide.ask(
            "getComputedStyle(document.activeElement).outlineStyle + document.activeElement.tagName"
        )
        assert seen != "none"


def test_dark_is_a_choice_and_paper_is_always_light(wide: Opened) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    assert wide.ask(ground) == "rgb(255, 255, 255)"
    wide.page.click("#theme")
    assert wide.ask(ground) == "rgb(20, 24, 29)"
    assert wide.ask("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    wide.page.emulate_media(media="print")
    assert wide.ask(ground) == "rgb(255, 255, 255)"
    assert wide.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert wide.ask(CONTRAST) == []
    wide.page.set_viewport_size({"width": 718, "height": 1050})  # A4 within its margins
    assert wide.ask("document.documentElement.scrollWidth") <= 718
    paper = wide.page.pdf(format="A4", print_background=False)
    wide.page.emulate_media(media="screen")
    assert paper.startswith(b"%PDF")
    assert len(paper) > 50_000
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / "report-en-print.pdf").write_bytes(paper)


def test_japanese_is_written_in_a_japanese_typeface(browser: "Browser", files: dict[str, Path]) -> None:
    opened = open_page(browser, files["ja"])
    client = opened.page.context.new_cdp_session(opened.page)
    client.send("DOM.enable")
    client.send("CSS.enable")
    root = client.send("DOM.getDocument")["root"]["nodeId"]
    fonts = []
    for place in (".sentence", "#tradeoff-0 .role-axis-title text"):
        node = client.send("DOM.querySelector", {"nodeId": root, "selector": place})["nodeId"]
        fonts += client.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
    opened.page.context.close()
    names = {font["familyName"] for font in fonts}
    if not any("CJK" in name or "Noto Sans JP" in name for name in names):
        pytest.skip(f"no Japanese typeface of ours is installed (Debian: fonts-noto-cjk); shown in {names}")
    assert not any("CJK" in name and not name.endswith("JP") for name in names)


def test_too_few_windows_for_an_interval_are_drawn_without_one(browser: "Browser", tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html_of(story_without_intervals(), "en"), encoding="utf-8")
    opened = open_page(browser, tmp_path / "page.html")
    assert opened.complaints == []
    assert opened.ask("document.querySelectorAll('#slices-0 .mark-symbol path').length") == 3
    opened.page.context.close()


def test_without_scripts_every_number_is_still_there(browser: "Browser", files: dict[str, Path]) -> None:
    opened = open_page(browser, files["en"], java_script_enabled=False)
    text = opened.page.inner_text("main")
    opened.page.context.close()
    assert Words("en")("noscript") in text
    assert "99th percentile of latency" in text
