"""Text that people or files gave, made harmless where it is shown: a terminal, a log line, Markdown.

HTML has `html.escape`, rich's markup has `rich.markup.escape`; these two are what they leave open.
"""

import html
import unicodedata

_MARKDOWN = "\\`*_{}[]()#+-.!|~"
_HIDDEN = {"Cc", "Cf", "Zl", "Zp", "Cs"}
"""Unicode categories that move the cursor, turn text around or cannot be printed at all."""


def printable(text: str) -> str:
    """One line without control characters: they are shown as \\x1b, \\n or \\u202e instead of obeyed."""
    return "".join(_visible(character) for character in text)


def markdown(text: str) -> str:
    """`text` as it stands, when rendered as Markdown: no HTML, no link, no emphasis, one line."""
    escaped = "".join(f"\\{c}" if c in _MARKDOWN else c for c in printable(text))
    return html.escape(escaped, quote=False)


def _visible(character: str) -> str:
    if unicodedata.category(character) in _HIDDEN:
        return character.encode("unicode_escape").decode()
    return character
