"""Names, reasons and values that people or files gave are shown, never obeyed: HTML, Markdown, terminals."""

import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.escaping import markdown, printable

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>[red]`x`[/red]\x1b[31m\u202e\n[a](javascript:b)"


class Tags(HTMLParser):
    """What a browser would make of a page: its tags, their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_data_docs_show_column_names_and_values_as_text_and_run_nothing(tmp_path: Path) -> None:
    import pandas as pd

    from validation.data import Column, Contract, validate

    times = pd.date_range("2024-01-01", periods=30, freq="h")
    frame = pd.DataFrame({"time": times, EVIL: [EVIL] * 3 + ["fine & well"] * 27, "R&D": range(30)})
    columns = (
        Column(name="time", type="time"),
        Column(name=EVIL, type="text", allowed=("fine & well", "<b onmouseover=alert(3)>")),
        Column(name="R&D", type="number", maximum=10),
    )
    contract = Contract(name="pump", source="pump.csv", columns=columns, time="time")
    report = validate(frame, contract, tmp_path / "docs", tmp_path / "aside", max_quarantined_share=1.0)
    assert {failure.column for failure in report.failures} == {
        EVIL,
        "R&D",
    }
    assert report.failures[0].examples[0] == EVIL
    assert report.num_quarantined == 22
    pages = [page.read_text() for page in (tmp_path / "docs").rglob("*.html")]
    assert len(pages) == 3
    for page in pages:
        assert page.index("Content-Security-Policy") < page.index("<body")
        parsed = Tags(page)
        assert {tag for tag, _ in parsed.tags} & {
            "script",
            "img",
            "iframe",
            "object",
            "embed",
            "base",
        } == set()
        attributes = [pair for _, pairs in parsed.tags for pair in pairs]
        assert [name for name, _ in attributes if name.startswith("on")] == []
        assert [value for _, value in attributes if value and "javascript:" in value] == []
    shown = " ".join(Tags(page).text for page in pages)
    assert "<img src=x onerror=alert(2)>" in shown
    assert "R&D" in shown


def test_handlers_and_scripts_that_come_by_another_way_are_taken_out(tmp_path: Path) -> None:
    from validation.data_docs import make_offline

    (tmp_path / "page.html").write_text(
        "<html><head></head><p onclick=alert(1)>a</p><p ONCLICK = 'alert(1)'>b</p><SCRIPT>x</SCRIPT></html>"
    )
    make_offline(tmp_path)
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"alert\(|script>", page, re.IGNORECASE)


def test_a_terminal_table_prints_names_and_reasons_as_they_are() -> None:
    from rich.console import Console
    from rich.table import Table

    from flows.tables import _plain

    table = Table(title=_plain(EVIL))
    table.add_column("reason")
    table.add_row(_plain(EVIL))
    output = io.StringIO()
    Console(file=output, width=400, force_terminal=True, color_system="truecolor").print(table)
    assert output.getvalue().count("[red]`x`[/red]") == 2
    assert output.getvalue().count(r"\x1b[31m\u202e\n[a]") == 2
    assert "\x1b[31m" not in output.getvalue()


def test_what_is_wrong_with_evil_input_is_one_harmless_line(tmp_path: Path) -> None:
    """By the command itself: a dataset file whose name and keys are what they should not be."""
    from tests.tiny_rollout import dankai

    place = tmp_path / "a\x1b[31m\nb.yaml"
    place.write_text("name: 'x'\n\"evil\\e[31m\\nkey\": 1\n")
    ended = dankai("rollout", "run", place, home=tmp_path / "home")
    assert ended.code == 2
    [line] = ended.err.splitlines()
    assert "\x1b" not in line
    assert r"a\x1b[31m\nb.yaml" in line


@given(st.text())
def test_printable_text_is_one_line_that_moves_no_cursor(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() or not set(shown) & set("\x1b\n\r\x00\u202e\x9b")
    assert len(shown.splitlines()) <= 1
    assert printable("plain text, 段階 é") == "plain text, 段階 é"


@given(st.text())
def test_markdown_holds_no_tag_no_link_and_no_emphasis(text: str) -> None:
    shown = markdown(text)
    assert "<" not in shown
    assert ">" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]#~]", shown)


def test_a_description_is_escaped_before_it_reaches_mlflow() -> None:
    """MLflow renders descriptions as Markdown."""
    assert markdown("[x](http://a.b) <b> `c`") == r"\[x\]\(http://a\.b\) &lt;b&gt; \`c\`"


PROGRESS = """
import sys
sys.stderr.isatty = lambda: True
from flows.progress import progress
with progress() as report:
    report("scoring [red]evil[/red]", 1, 2)
"""


def test_a_progress_bar_obeys_no_markup() -> None:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *sys.path]))
    environ = {"TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", PROGRESS], capture_output=True, text=True, env=environ, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "[red]evil[/red]" in done.stderr


@pytest.mark.parametrize("name", ["../up", "a/b", "a b", "<b>", "[red]", "pump\n", "Pump", "", "."])
def test_a_datasets_name_is_a_plain_word_and_leads_nowhere(name: str, tmp_path: Path) -> None:
    import yaml

    from pipelines.data.spec import load_spec
    from tests.tiny_rollout import pump_spec
    from validation.errors import InputError

    path = tmp_path / "pump.yaml"
    path.write_text(yaml.safe_dump(pump_spec(name)))
    with pytest.raises(InputError, match=r"pump\.yaml:\d+: name: "):
        load_spec(path)
