"""One catalogue, two languages, and nothing that a record can say without a word for it."""

import string
from typing import get_args

import pytest

from pipelines.report import catalogue, catalogue_of_sections
from pipelines.report.words import LANGUAGES, MESSAGES, Words, language_of
from validation.drift import Decision
from validation.effects import Kind, Measure
from validation.kpis import KINDS, Reference


def placeholders(text: str) -> list[str]:
    return sorted({name for _, name, _, _ in string.Formatter().parse(text) if name is not None})


@pytest.mark.parametrize("key", MESSAGES)
def test_both_languages_say_it_and_ask_for_the_same(key: str) -> None:
    english, japanese = MESSAGES[key]
    assert english.strip()
    assert japanese.strip()
    assert placeholders(english) == placeholders(japanese)
    assert not any(ord(letter) > 0x2FFF for letter in english)


def test_no_key_is_given_twice() -> None:
    assert not catalogue.MESSAGES.keys() & catalogue_of_sections.MESSAGES.keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_kpi_unit_and_reference_has_a_name(language: str) -> None:
    words = Words(language)  # type: ignore[arg-type]
    for name, kind in KINDS.items():
        assert words(f"kpi.{name}")
        assert words(f"counted.{kind.counted}", n="3")
        if kind.unit and kind.unit != "B":
            assert words(f"unit.{kind.unit}")
    for reference in get_args(Reference):
        assert words(f"reference.{reference}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_that_can_drift_has_a_name(language: str) -> None:
    words = Words(language)  # type: ignore[arg-type]
    said = {"kind": Kind, "measure": Measure, "decision": Decision}
    for about, values in said.items():
        assert all(words(f"drift.{about}.{value}") for value in get_args(values))


def test_a_word_that_is_not_there_is_an_error_and_not_a_blank() -> None:
    with pytest.raises(KeyError):
        Words("ja")("kpi.of_another_world")


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": ""}, "en"),
    ],
)
def test_the_language_is_the_locales(environ: dict[str, str], language: str) -> None:
    assert language_of(environ) == language
