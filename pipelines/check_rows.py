"""The checks of a verdict as rows that people read: on the terminal, in a model card, in Prefect."""

import math

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
    unit = KINDS[kpi.name].unit
    if kpi.name == "payback_days" and math.isinf(kpi.value):
        return "does not pay back"
    if unit == "B":
        return f"{kpi.value / 2**20:.1f} MiB [{kpi.low / 2**20:.1f}, {kpi.high / 2**20:.1f}]"
    sign = "+" if kpi.versus else ""
    numbers = [
        f"{number:{sign}.3f}" if abs(number) < 1000 else _large(number)
        for number in (kpi.value, kpi.low, kpi.high)
    ]
    range_ = "no interval" if math.isnan(kpi.low) else f"{numbers[1]}, {numbers[2]}"
    return f"{numbers[0]} [{range_}] {unit}".rstrip()


def _large(number: float) -> str:
    return "never" if math.isinf(number) else f"{number:,.0f}"


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
