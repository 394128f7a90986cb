"""A page's language: which one, and the catalogue's sentences in it."""

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pipelines.report import catalogue, catalogue_of_sections

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
MESSAGES = catalogue.MESSAGES | catalogue_of_sections.MESSAGES


def language_of(environ: Mapping[str, str] = os.environ) -> Language:
    """Japanese where the locale is, else English; by the first that is set, as POSIX orders them."""
    named = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    return "ja" if named.lower().startswith("ja") else "en"


class Words:
    """The catalogue in one language: `words("kpis.at_least", bound="0.5")`."""

    def __init__(self, language: Language) -> None:
        self.language: Language = language
        self._position = LANGUAGES.index(language)

    def __call__(self, key: str, **values: Any) -> str:
        """Raises KeyError for a key that the catalogue lacks."""
        return MESSAGES[key][self._position].format(**values)
