"""The one exception that is shown to people instead of a traceback, and its words for a misspelt name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: the thing, the place, the fix."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """ "unknown KPI 'aurocc': did you mean 'auroc'?", or the whole list when nothing is close."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    fix = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"
    return f"unknown {what} {name!r}: {fix}"
