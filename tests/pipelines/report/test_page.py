"""The page without a browser: one file, nothing of the data obeyed, nothing blank that was not measured."""

# ruff: noqa: RUF001 -- Japanese is written with its own punctuation

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.compose import compose
from pipelines.report.html import html_of
from pipelines.report.page import Chart
from pipelines.report.sections.looks import looks
from pipelines.report.story import FILE, Story, read_story
from pipelines.report.words import LANGUAGES, Language, Words
from tests.report_story import EVIL, bare_story, evaluation, whole_story, window
from validation.errors import InputError
from validation.gates import Outcome


@pytest.fixture(scope="module")
def page() -> str:
    return html_of(whole_story(), "en")


def part(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


class Tags(HTMLParser):
    """Tags with their attributes, scripts left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_no_name_or_value_of_the_data_becomes_markup(page: str) -> None:
    tags = Tags(page).found
    assert [tag for tag, _ in tags if tag in ("img", "iframe", "link", "object", "base", "form")] == []
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert sum(tag == "script" for tag, _ in tags) == 4
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(" in page


def test_the_data_is_whole_and_specifications_hold_none_of_it(page: str) -> None:
    assert part(page, "data")["groups_0"][-1]["group"] == EVIL.replace("\u202e", "\\u202e") or any(
        row["group"].startswith("<script>") for row in part(page, "data")["groups_0"]
    )
    assert "alert(" not in json.dumps(part(page, "specs"))


def test_only_its_own_scripts_may_run_and_nothing_may_be_fetched(page: str) -> None:
    [policy] = [dict(at)["content"] for tag, at in Tags(page).found if at.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert "'unsafe-inline'" not in rules["script-src"]
    assert rules["script-src"].count("sha256-") == 2
    assert "http" not in str(policy)
    addresses = [at.get("href") or at.get("src") for tag, at in Tags(page).found if tag in ("a", "script")]
    assert [each for each in addresses if each and each.startswith(("http:", "https:", "//"))] == [
        f"http://127.0.0.1:5000/#/experiments/1/runs/{'0' * 32}"
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_was_not_measured_says_so_in_every_section(language: Language) -> None:
    page, words = compose(bare_story(), Words(language)), Words(language)
    assert page.verdict.sentence == words("verdict.rollout.none")
    empty = {
        section.id: [block for block in section.blocks if getattr(block, "kind", "") == "missing"]
        for section in page.sections
    }
    assert [name for name, notes in empty.items() if not notes] == ["lineage"]
    assert html_of(bare_story(), language).count(words("lineage.none")) == 8


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_chart_is_what_vega_lite_takes_and_says_its_unit_or_its_n(language: Language) -> None:
    import altair

    story = whole_story().model_copy(update={"windows": (window("worst", 0.9),)})
    page = compose(story, Words(language))
    charts = [block for section in page.sections for block in section.blocks if isinstance(block, Chart)]
    assert len(charts) == 10
    for chart in charts:
        altair.Chart.from_dict({**chart.spec, "config": {}}, validate=True)
        said = json.dumps(chart.spec, ensure_ascii=False) + chart.text
        assert re.search(
            r"\bn\b|ms|MiB|ミリ秒|[Dd]ays|日数|\d (steps|windows|rows)|ステップ|ウィンドウ|行", said
        ), chart.title


@pytest.mark.parametrize("task", ["forecast", "detect"])
def test_a_series_is_drawn_as_a_line_with_what_was_said_of_it(task: str) -> None:
    import altair

    story = whole_story().model_copy(update={"task": task, "windows": (window("worst", 0.9),)})
    read, answered = [block for block in looks(story, Words("en")).blocks if isinstance(block, Chart)]
    for chart in (read, answered):
        altair.Chart.from_dict({**chart.spec, "config": {}}, validate=True)
        assert "line" in {layer["mark"]["type"] for layer in chart.spec["layer"]}


@pytest.mark.parametrize(
    ("kind", "outcomes"),
    [
        ("retraining", ("promoted", "held", "dropped", "refused", "unfinished")),
        ("monitor", ("none", "watch", "retrain", "fault")),
    ],
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_way_to_end_has_its_sentence(kind: str, outcomes: tuple[str, ...], language: Language) -> None:
    said = [
        compose(bare_story(kind=kind, outcome=outcome, reason="new pump"), Words(language)).verdict
        for outcome in outcomes
    ]
    assert len({each.sentence for each in said}) == len(outcomes)
    assert all("new pump" in str(each.facts) for each in said)


def test_the_sentence_and_the_ladder_say_where_a_rollout_stopped() -> None:
    page = compose(whole_story(), Words("ja"))
    assert (
        page.verdict.sentence
        == "「試験導入（パイロット）」段階の判定は「保留」です。次の段階には進んでいません。"
    )
    assert [rung.state for rung in page.ladder] == ["here", "ahead", "ahead", "ahead"]
    assert [rung.outcome for rung in page.ladder] == ["HOLD", "", "", ""]


def test_a_pass_that_waits_or_was_taken_back_is_not_told_as_reached() -> None:
    passed = evaluation()
    verdict = passed.verdict.model_copy(update={"outcome": Outcome.PASS})
    story = whole_story()
    told = story.model_copy(update={"evaluations": (passed.model_copy(update={"verdict": verdict}),)})
    words = Words("en")
    assert compose(told, words).verdict.sentence == words("verdict.rollout.elsewhere")


def test_a_story_is_read_as_it_was_kept_and_anything_else_is_one_line(tmp_path: Path) -> None:
    story = whole_story()
    (tmp_path / FILE).write_text(story.model_dump_json())
    assert read_story(tmp_path).model_dump_json() == story.model_dump_json()
    assert isinstance(read_story(tmp_path / FILE), Story)
    (tmp_path / FILE).write_text('{"kind": "rollout"}')
    with pytest.raises(InputError, match=r"report\.json: not a report of this version"):
        read_story(tmp_path)
    with pytest.raises(InputError, match=r"there is no such file; name a folder that holds report\.json"):
        read_story(tmp_path / "nowhere")
