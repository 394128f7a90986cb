"""What a page is made of: sections that hold notes, tables and charts, and the data that both draw from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.report.bars import Bar

Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    kind: str = "text"
    """text, number, value (a number that may take two lines), hash, bar or outcome."""
    outcome: str = ""
    href: str = ""
    note: str = ""
    """Smaller, below."""
    note_language: str = ""
    bar: Bar | None = None


@dataclass(frozen=True)
class Table:
    """Rows with a head; the first cell of each names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_cards: bool = False
    """On a narrow screen each row is a card; else the table scrolls sideways in its frame."""
    is_titled: bool = True
    """Its caption is seen; else only heard, as the heading above says the same."""
    is_folded: bool = False
    """Shown when opened: the chart above says the same."""


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite specification over rows of the page's data, and what a listener hears in its place."""

    title: str
    text: str
    spec: Spec
    zoom: tuple[float, float] | None = None
    """First and last place of the axis that can be moved."""


@dataclass(frozen=True)
class Note:
    """A paragraph; `language` where it is not the page's."""

    text: str
    kind: str = "plain"
    """plain, missing or heading."""
    language: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own. `data` can be downloaded, by name."""

    id: str
    title: str
    blocks: tuple[Table | Chart | Note, ...]
    data: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Rung:
    """One stage of the ladder."""

    title: str
    state: str
    """done, here or ahead."""
    words: str
    outcome: str = ""
    gate: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer at the top."""

    label: str
    tone: str
    """PASS, HOLD, FAIL or NONE: the colour and the mark."""
    sentence: str
    details: tuple[str, ...]
    lead: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    record: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """Everything that the template shows."""

    language: str
    title: str
    heading: str
    description: str
    finished: str
    verdict: Verdict
    ladder: tuple[Rung, ...]
    sections: tuple[Section, ...]


def texts(*values: str) -> tuple[Cell, ...]:
    return tuple(Cell(value) for value in values)


def numbers(*values: str) -> tuple[Cell, ...]:
    return tuple(Cell(value, "number") for value in values)


def missing(text: str) -> Note:
    """In the place of what was not measured."""
    return Note(text, "missing")
