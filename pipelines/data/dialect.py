"""How a text file is written: encoding, delimiter, decimal mark. Told apart by what the file holds, or asked.

Encodings overlap: most Latin-1 bytes are legal in Shift JIS. Those that decode are compared by how much their
text looks like writing: whole words of one script, not single kanji between Latin letters.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_EIGHT_BIT = ("cp932", "euc_jp", "cp1252")
_SAMPLE_LINES = 2000
_MOSTLY = 0.9
_CLEARLY = 0.2  # a difference of plausibility (0 to 1) from which on nobody needs to be asked
_JAPANESE = re.compile("[\u3001-\u30fe\u4e00-\u9faf\uff01-\uff5e]")
_HALF_WIDTH = re.compile("[\uff61-\uff9f]")
_LATIN = re.compile("[\u00c0-\u00ff\u0152-\u017e\u00b0\u00b2\u00b3\u00b5\u2013\u20ac\u2026\u00ba\u00aa]")


def encodings_of(content: bytes) -> tuple[str, ...]:
    """Encodings in which `content` makes sense, best first; one where there is no doubt, none for no text."""
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return (name,)
    if content.count(0) > len(content) / 4:
        halves = {"utf-16-le": content[1::2].count(0), "utf-16-be": content[::2].count(0)}
        return (max(halves, key=lambda name: halves[name]),)
    if content.count(0):
        return ()
    if _decoded(content, "utf-8") is not None:
        return ("iso2022_jp",) if b"\x1b$" in content else ("utf-8",)
    read = {name: _decoded(content, name) for name in _EIGHT_BIT}
    looks = {name: _plausibility(text) for name, text in read.items() if text is not None}
    if not looks:
        return ("latin-1",)  # every byte is something there
    best = max(looks.values())
    return tuple(sorted((n for n in looks if looks[n] > best - _CLEARLY), key=lambda n: -looks[n]))


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeError:
        return None


def _plausibility(text: str) -> float:
    """Between 0 and 1: how much of what is not ASCII stands as writing has it."""
    others = [place for place, letter in enumerate(text) if ord(letter) > 127]
    return sum(_looks_written(text, place) for place in others) / max(1, len(others))


def _looks_written(text: str, place: int) -> float:
    """Japanese stands beside Japanese, an accented letter beside a Latin one, a degree sign before C."""
    letter = text[place]
    beside = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
    latin = sum(bool(re.match("[A-Za-z]", each) or _LATIN.match(each)) for each in beside)
    if _JAPANESE.match(letter):
        return 0.1 if latin == len(beside) and latin else 1.0
    if _HALF_WIDTH.match(letter):
        return 0.9 if any(_HALF_WIDTH.match(each) or _JAPANESE.match(each) for each in beside) else 0.2
    return 1.0 if _LATIN.match(letter) and latin else 0.5 if _LATIN.match(letter) else 0.0


def delimiter_of(lines: Sequence[str]) -> tuple[str, str]:
    """The delimiter of a table with a header, and "" or, in words, why these lines are none."""
    sample = [line for line in islice(lines, _SAMPLE_LINES) if line.strip()]
    if len(sample) < 2:
        return ",", "it has no rows below a header"
    fields = {mark: [len(row) for row in csv.reader(sample, delimiter=mark)] for mark in DELIMITERS}
    usual = {mark: Counter(counts[1:]).most_common(1)[0] for mark, counts in fields.items()}
    # A comma may part numbers too, in every row; but then not in the header.
    order = sorted(
        (mark for mark in DELIMITERS if usual[mark][0] > 1),
        key=lambda mark: (fields[mark][0] == usual[mark][0], usual[mark][1], usual[mark][0]),
    )
    if not order:
        return ",", ""  # one column
    best = order[-1]
    return best, _uneven(fields[best], usual[best][0], DELIMITERS[best])


def _uneven(counts: Sequence[int], usual: int, delimiter: str) -> str:
    if counts.count(usual) < _MOSTLY * (len(counts) - 1):
        return f"no table: its lines have {min(counts)} to {max(counts)} fields parted by {delimiter}"
    odd = next((place for place, count in enumerate(counts) if count != usual), None)
    if odd is None:
        return ""
    if odd > 0:
        return f"line {odd + 1} has {counts[odd]} fields parted by {delimiter}, most others {usual}: mend it"
    first = counts.index(usual) + 1
    return (
        f"its first line has {counts[0]} fields parted by {delimiter}, most others {usual}: is line {first} "
        "the header? Remove what stands above, and give every line as many fields"
    )


def decimal_of(columns: Sequence[Sequence[str]]) -> tuple[str, str]:
    """The decimal mark of columns of texts, and "" or, in words, why it cannot be told."""
    shown: dict[str, str] = {}
    for values in columns:
        for mark, form in ((",", r"[+-]?\d+,\d+"), (".", r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")):
            fitting = [value for value in values if re.fullmatch(form, value.strip())]
            if len(fitting) > 0.5 * len(values):
                shown.setdefault(mark, fitting[0])
    if len(shown) == 2:
        return ".", f"numbers have both a decimal comma ({shown[',']}) and a point ({shown['.']}): use one"
    return next(iter(shown), "."), ""
