"""Why a check did not pass, in the page's language. The gate says it in English; its forms are known."""

import re

from pipelines.report.words import Words
from validation.gates import Check

_FORMS: tuple[tuple[str, str], ...] = (
    (
        r"(?P<n>[\d,]+) (?P<counted>windows|timings|processes|once) are too few, (?P<needed>\d+) are needed",
        "few",
    ),
    (r"none of (?P<n>\d+) groups has (?P<needed>\d+) windows", "no_group"),
    (r"it was not measured", "unmeasured"),
    (r"it was measured (?P<n>\d+) times", "repeated"),
    (r"a group was measured twice", "group_twice"),
    (r"there is no (?P<reference>dense|baseline|champion) to compare with", "no_reference"),
    (r"was (?:not )?scored on", "other_windows"),
    (r"measured on (?:checkpoint|snapshot)|it was compared with|a share of it allows nothing", "foreign"),
    (r"the value or its interval is not a possible number", "no_number"),
    (r"asked for the (?P<n>\d+)\w\w time, (?P<allowed>\d+) are allowed", "asked"),
    (r"its interval states (?P<stated>no confidence|[\d.]+%), (?P<needed>[\d.]+%) is needed", "confidence"),
    (r"hours ago, .* are allowed", "old"),
    (r"does not say when it was measured", "undated"),
    (r"measured after it was judged", "clock"),
    (r"lies on both sides of it", "straddles"),
    (r"even the optimistic end .* breaks it", "breaks"),
    (r"even the pessimistic end of the interval keeps it", "keeps"),
)


def reason_of(check: Check, words: Words) -> tuple[str, bool]:
    """The reason, and whether it is in the page's language: an unknown form stays as the gate wrote it."""
    for pattern, key in _FORMS:
        if found := re.search(pattern, check.reason):
            return words(f"reason.{key}", **_named(found.groupdict(), words)), True
    return check.reason, words.language == "en"


def _named(values: dict[str, str], words: Words) -> dict[str, str]:
    if "counted" in values:
        values["counted"] = words(f"counted.of.{values['counted']}")
    if "reference" in values:
        values["reference"] = words(f"reference.{values['reference']}")
    return values
