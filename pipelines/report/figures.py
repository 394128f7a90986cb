"""Numbers as people read them: a few digits, a unit, and words where there is no number."""

import math
from collections.abc import Sequence

from pipelines.report.words import Words
from validation.gates import Check
from validation.kpis import KINDS, Kpi

_MIB = 2**20
_NBSP = "\N{NO-BREAK SPACE}"  # an interval is not torn apart
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, sign: bool = False, decimals: int | None = None) -> str:
    """Three significant digits unless `decimals` says how many places; a dash for no number."""
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else f"{MINUS}\N{INFINITY}"
    if value != 0 and abs(value) < 1e-5:
        return f"{value:.1e}".replace("-", MINUS, 1) if value < 0 else f"{value:.1e}"
    text = f"{abs(value):,.{_places(abs(value)) if decimals is None else decimals}f}"
    negative = value < 0 and text.strip("0.,") != ""
    return (MINUS if negative else "+" if sign else "") + text


def _places(value: float) -> int:
    """After the point, for three digits that say something."""
    return 0 if value == 0 else min(6, max(0, 2 - math.floor(math.log10(value))))


def places_of(value: float, low: float, high: float) -> int:
    """As many places as show two digits of an interval's half-width; three where that says enough."""
    width = (high - low) / 2
    if not math.isfinite(width) or width <= 0:
        return _places(abs(value)) if math.isfinite(value) else 0
    is_told = width >= 1e-3 or abs(value) >= 0.1  # by three places; a small difference takes more
    return min(3 if is_told else 5, max(0, 1 - math.floor(math.log10(width))))


def between(value: float, low: float, high: float, sign: bool = False) -> str:
    """A value with its interval, in the same number of places."""
    decimals = places_of(value, low, high)
    said = [number(each, sign, decimals) for each in (value, low, high)]
    return said[0] if math.isnan(low) else f"{said[0]} [{said[1]},{_NBSP}{said[2]}]"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%".replace("-", MINUS)


def confidence(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4g}%"


def mib(bytes_: float) -> float:
    return bytes_ / _MIB


def scale_of(name: str) -> float:
    """What a KPI's value is multiplied with to be shown: memory is shown in MiB."""
    return 1 / _MIB if KINDS[name].unit == "B" else 1.0


def unit_of(name: str, words: Words) -> str:
    unit = KINDS[name].unit
    return words(f"unit.{'MiB' if unit == 'B' else unit}") if unit else ""


def kpi_name(check_or_kpi: Check | Kpi, words: Words) -> str:
    """Its name in words, with whom it is compared with and whose worst group it is."""
    is_check = isinstance(check_or_kpi, Check)
    name = words(f"kpi.{check_or_kpi.kpi if is_check else check_or_kpi.name}")
    versus = check_or_kpi.threshold.versus if is_check else check_or_kpi.versus
    if versus:
        name = words("kpis.versus", kpi=name, reference=words(f"reference.{versus}"))
    if check_or_kpi.slice:
        column = check_or_kpi.slice.removeprefix("worst:").split("=")[0]
        name = words("kpis.worst", kpi=name, group=words("kpis.group", column=column))
    return name


def kpi_value(kpi: Kpi | None, words: Words) -> str:
    """The value with its interval and unit, or that there is none."""
    if kpi is None:
        return words("unmeasured")
    if math.isinf(kpi.value) and KINDS[kpi.name].may_be_infinite:
        return words("never")
    if kpi.low == kpi.high == kpi.value:
        return with_unit(number(kpi.value * scale_of(kpi.name)), kpi.name, words)
    return with_unit(f"{_shown(kpi)[0]} {interval(kpi, words)}", kpi.name, words)


def _shown(kpi: Kpi) -> list[str]:
    """The value and both ends of its interval, in the same number of places."""
    scaled = [end * scale_of(kpi.name) for end in (kpi.value, kpi.low, kpi.high)]
    return [number(end, kpi.versus is not None, places_of(*scaled)) for end in scaled]


def interval(kpi: Kpi, words: Words) -> str:
    """Its ends in brackets, or that there are none."""
    if math.isnan(kpi.low) or math.isnan(kpi.high):
        return f"({words('no_interval')})"
    _, low, high = _shown(kpi)
    if math.isinf(kpi.high) and KINDS[kpi.name].may_be_infinite:
        high = words("never")
    return f"[{low},{_NBSP}{high}]"


def with_unit(text: str, name: str, words: Words) -> str:
    unit = unit_of(name, words)
    return text + unit


def allowed(check: Check, words: Words) -> str:
    """The threshold in words."""
    asked = check.threshold
    if asked.relative_margin is not None:
        return words("kpis.margin", bound=percent(asked.relative_margin, 0))
    if asked.margin == 0:
        return words("kpis.not_worse")
    if asked.margin is not None:
        return words("kpis.margin", bound=number(asked.margin))
    bound = asked.at_least if asked.at_least is not None else asked.at_most
    assert bound is not None  # a demand has exactly one of the four
    shown = with_unit(f"{bound * scale_of(check.kpi):,.4g}", check.kpi, words)
    return words("kpis.at_least" if asked.at_least is not None else "kpis.at_most", bound=shown)


def sample(kpi: Kpi, words: Words) -> str:
    """How many of what stand behind it."""
    return words(f"counted.{KINDS[kpi.name].counted}", n=f"{kpi.n:,}")


def span(counts: Sequence[int], words: Words) -> str:
    """From the least to the most; one number where they are the same."""
    low, high = f"{min(counts):,}", f"{max(counts):,}"
    return low if low == high else words("range", low=low, high=high)


def listed(names: Sequence[str], words: Words) -> str:
    return words("list").join(names)
