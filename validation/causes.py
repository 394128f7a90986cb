"""Why a check came out as it did, apart from any language: for pages in another one, and for programs."""

from typing import Literal, NamedTuple

from validation.record import Record

CauseKind = Literal[
    "keeps",
    "straddles",
    "breaks",
    "unmeasured",
    "repeated",
    "no_reference",
    "other_windows",
    "no_group",
    "group_twice",
    "few",
    "foreign",
    "no_number",
    "undated",
    "old",
    "clock",
    "asked",
    "confidence",
]


class Cause(Record):
    """A kind, and what was found beside what is needed or allowed where that is a number.

    few, no_group, repeated: counts. old: hours. asked: times of asking. confidence: shares of 1; None found
    where the interval states none.
    """

    kind: CauseKind
    found: float | None = None
    needed: float | None = None


class Gap(NamedTuple):
    """Why something proves nothing, and the same in words."""

    cause: Cause
    words: str


def gap(kind: CauseKind, words: str, found: float | None = None, needed: float | None = None) -> Gap:
    return Gap(Cause(kind=kind, found=found, needed=needed), words)
