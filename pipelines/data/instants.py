"""How instants are written in a column of texts; a column may mix several ways."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pipelines.data.sources import written_instant

if TYPE_CHECKING:
    import polars as pl

Order = Literal["day", "month", "year"]
"""What comes first in a date whose parts do not tell: 03/04/2024, 03/04/05."""
ORDERS: tuple[Order, ...] = ("day", "month", "year")
_CLEAR = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y年%m月%d日", "%d-%b-%Y", "%d %b %Y", "%b %d, %Y", "%d-%b-%y")
_UNCLEAR: dict[Order, tuple[str, ...]] = {
    "day": ("%d.%m.%Y", "%d/%m/%Y", "%d-%m-%Y", "%d.%m.%y", "%d/%m/%y", "%d-%m-%y"),
    "month": ("%m.%d.%Y", "%m/%d/%Y", "%m-%d-%Y", "%m.%d.%y", "%m/%d/%y", "%m-%d-%y"),
    "year": ("%y.%m.%d", "%y/%m/%d", "%y-%m-%d"),
}
_CLOCKS = (
    *(
        "",
        " %H:%M:%S",
        " %H:%M",
        "T%H:%M:%S",
        "T%H:%M",
        " %H:%M:%S%.f",
        "T%H:%M:%S%.f",
        " %H.%M.%S",
        " %H.%M",
    ),
    *(" %H時%M分%S秒", " %H時%M分", " %H:%M:%SZ", "T%H:%M:%SZ", "T%H:%MZ", " %H:%M:%S%.fZ", "T%H:%M:%S%.fZ"),
    *(" %H:%M:%S%z", "T%H:%M:%S%z", " %H:%M:%S%.f%z", "T%H:%M:%S%.f%z", " %H:%M%z", "T%H:%M%z"),
    *(" %I:%M %p", " %I:%M:%S %p"),
)
_DIGITS = ("%Y%m%d%H%M%S", "%Y%m%d%H%M", "%Y%m%d", "%s")
CLOCK = r"\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\.\d+)?"
"""A time of day by itself."""
_MOST_FORMATS = 6
_PER_SHAPE = 200


def readings(
    values: "pl.Series", may_be_digits: bool, order: Order | None = None
) -> dict[Order, tuple[str, ...]]:
    """For each order of a date's parts (or the given one) the formats that read all; {} for no instants.

    Orders that come to the same formats are one: a date that tells its parts has a single reading.
    """
    sample, found = _sample(values), dict[Order, tuple[str, ...]]()
    if sample.is_empty():
        return {}
    for each in (order,) if order else ORDERS:
        formats = _cover(sample, tuple(_formats(each, may_be_digits)))
        if formats and formats not in found.values():
            found[each] = formats
    return found


def read(values: "pl.Series", formats: Sequence[str]) -> "pl.Series":
    """The instants, datetime[us] in UTC or without a zone; null where no format fits."""
    import polars as pl

    return pl.DataFrame({"at": values}).select(written_instant(pl.col("at"), formats))["at"]


def unread(values: "pl.Series", may_be_digits: bool) -> tuple[float, str]:
    """Share of the values that the best reading leaves, and the first of those; (1, "") where none fits."""
    sample = _sample(values)
    best = (1.0, "")
    for each in ORDERS:
        left = _greedy(sample, tuple(_formats(each, may_be_digits)))[1]
        if len(left) < best[0] * len(sample):
            best = len(left) / len(sample), str(left[0]) if len(left) else ""
    return best


def _formats(order: Order, may_be_digits: bool) -> Iterator[str]:
    for date in (*_CLEAR, *_UNCLEAR[order]):
        yield from (f"{date}{clock}" for clock in _CLOCKS)
    if may_be_digits:
        yield from _DIGITS


def _sample(values: "pl.Series") -> "pl.Series":
    """Some values of every shape (digits and letters alike), in order: rare ways of writing are among them.

    None where most values lack the digits of a date: names are many, and no format is tried on them.
    """
    import polars as pl

    texts = pl.DataFrame({"at": values.drop_nulls().unique(maintain_order=True)})
    if texts["at"].str.count_matches(r"\d").ge(4).sum() < len(texts) / 2:
        return texts["at"].clear()
    shape = pl.col("at").str.replace_all(r"\d+", "9").str.replace_all("[A-Za-z]+", "A").alias("shape")
    spread = texts.with_columns(shape).group_by("shape", maintain_order=True)
    return pl.concat([_spread(part["at"]) for _, part in spread]) if len(texts) else texts["at"]


def _spread(values: "pl.Series") -> "pl.Series":
    return values.gather_every(max(1, len(values) // _PER_SHAPE))


def _cover(sample: "pl.Series", formats: tuple[str, ...]) -> tuple[str, ...]:
    chosen, left = _greedy(sample, formats)
    return chosen if left.is_empty() else ()


def _greedy(sample: "pl.Series", formats: tuple[str, ...]) -> "tuple[tuple[str, ...], pl.Series]":
    """The format that reads most, then the one that reads most of the rest ...; and what none reads."""
    chosen: list[str] = []
    left = sample
    while not left.is_empty() and len(chosen) < _MOST_FORMATS:
        first = str(left[0])
        fitting = [each for each in formats if _may_fit(each, first)]
        masks = {each: _fits(left, each) for each in fitting}
        best = max(masks, key=lambda each: masks[each].sum(), default=None)
        if best is None or not masks[best].any():
            break
        chosen.append(best)
        left = left.filter(~masks[best])
    return tuple(chosen), left


def _may_fit(form: str, text: str) -> bool:
    """Cheaply: whatever stands between the text's digits and letters stands in the format too."""
    marks = set(re.sub(r"%[a-zA-Z]", "", form.replace("%.f", ".")))
    zone = {"+", "-", ":"} if form.endswith("%z") else set[str]()
    return set(re.sub(r"[\da-zA-Z]", "", text)) <= marks | zone


def _fits(values: "pl.Series", form: str) -> "pl.Series":
    """Which values the format reads as an instant of our times."""
    return read(values, [form]).dt.year().is_between(1971, 2100).fill_null(False)
