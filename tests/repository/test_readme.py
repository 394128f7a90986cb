"""What the README and its pages tell people to type is there, and what they link to as well."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from flows.cli import dankai
from tests.repository.readme_blocks import ROOT, blocks

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "infra/operators.md",
    "infra/approvers.md",
    "infra/edge.md",
    "sparse_model/EXTENDING.md",
)
README = (ROOT / "README.md").read_text()


def test_the_readme_has_blocks_that_are_run_and_each_other_one_says_why_not() -> None:
    """`make readme` runs them; this only looks."""
    found = list(blocks(README))
    assert len([block for block in found if not block.reason]) >= 2
    assert len(found) == README.count("```bash\n")
    assert all(len(block.reason) > 8 for block in found if block.reason)


def told(page: str) -> Iterator[list[str]]:
    """Every `dankai ...` that a page writes as code, as words."""
    text = (ROOT / page).read_text()
    inline = re.findall(r"`(dankai [^`]+)`", text)
    code = "\n".join(re.findall(r"(?ms)^```\w*\n(.*?)^```", text) + re.findall(r"(?m)^ {4}(dankai .+)", text))
    lines = re.findall(r"(?m)^(?:\[\w+\]\$ )?(?:\.venv/bin/)?(dankai [^#\n]+)", code)
    for command in (*inline, *lines):
        yield re.split(r"\s{3,}|[(|]", command)[0].split()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_that_a_page_names_exists(page: str) -> None:
    for words in told(page):
        command: click.Command = dankai
        rest = words[1:]
        while rest and isinstance(command, click.Group) and rest[0].isidentifier():
            assert rest[0] in command.commands, f"{page}: {shlex.join(words)}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {
            "--help",
            "--version",
        }
        for word in rest:
            option = re.match(r"\[?(--[a-z-]+)", word)
            assert option is None or option[1] in known, f"{page}: {shlex.join(words)}: {option[1]}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (folder / link).exists(), f"{page}: {link}"
    named = re.findall(r"`((?:flows|infra|pipelines|sparse_model|tests|validation)/[\w/.-]+)`", text)
    for path in named:
        assert (ROOT / path).exists(), f"{page}: {path}"
