"""The checks of a verdict as rows that people read: on the terminal, in a model card, in Prefect."""

import math

from pipelines.report.figures import places_of, scale_of
from validation.gates import Check
from validation.kpis import KINDS
from validation.record import Record


class Row(Record):
    """One line of the table."""

    stage: str
    kpi: str
    value: str
    threshold: str
    verdict: str


def row_of(stage: str, check: Check) -> Row:
    """A check for people: KPI, value with interval, threshold, verdict."""
    name = KINDS[check.kpi].name.replace("_", " ")
    versus = f" vs {check.threshold.versus}" if check.threshold.versus else ""
    where = f" ({check.slice.replace('worst:', 'worst ')})" if check.slice else ""
    note = "" if check.severity == "required" else f" ({check.severity.replace('_', ' ')})"
    return Row(
        stage=stage,
        kpi=f"{name}{versus}{where}",
        value=_value(check),
        threshold=_threshold(check),
        verdict=f"{check.outcome}{note}",
    )


def _value(check: Check) -> str:
    kpi = check.measured
    if kpi is None:
        return "not measured"
    if kpi.name == "payback_days" and math.isinf(kpi.value):
        return "does not pay back"
    unit = "MiB" if KINDS[kpi.name].unit == "B" else KINDS[kpi.name].unit
    value, low, high = (end * scale_of(kpi.name) for end in (kpi.value, kpi.low, kpi.high))
    sign = "+" if kpi.versus else ""
    if low == value == high:
        return f"{value:{sign}{',.0f' if abs(value) >= 1e3 else '.3g'}} {unit}".rstrip()
    shown = [_number(each, places_of(value, low, high), sign) for each in (value, low, high)]
    range_ = "no interval" if math.isnan(low) else f"{shown[1]}, {shown[2]}"
    return f"{shown[0]} [{range_}] {unit}".rstrip()


def _number(number: float, places: int, sign: str) -> str:
    return "never" if math.isinf(number) else f"{number:{sign},.{places}f}"


def _threshold(check: Check) -> str:
    asked = check.threshold
    if asked.at_least is not None:
        return f"at least {asked.at_least:g}"
    if asked.at_most is not None:
        in_mib = KINDS[check.kpi].unit == "B"
        return f"at most {asked.at_most / 2**20:g} MiB" if in_mib else f"at most {asked.at_most:g}"
    if asked.relative_margin is not None:
        return f"not worse by over {asked.relative_margin:.0%}"
    return f"not worse by over {asked.margin:g}"
