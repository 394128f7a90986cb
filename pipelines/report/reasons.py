"""Why a check came out as it did, in the page's language."""

from pipelines.report.figures import percent
from pipelines.report.words import Words
from validation.causes import Cause
from validation.gates import Check
from validation.kpis import KINDS


def reason_of(check: Check, words: Words) -> tuple[str, bool]:
    """The reason, and whether it is in the page's language: older records have it in English alone."""
    if check.cause is None:
        return check.reason, words.language == "en"
    return words(f"reason.{check.cause.kind}", **_values(check, check.cause, words)), True


def _values(check: Check, cause: Cause, words: Words) -> dict[str, str]:
    values = {"found": _said(cause.found, cause, words), "needed": _said(cause.needed, cause, words)}
    if check.kpi in KINDS:
        values["counted"] = words(f"counted.of.{KINDS[check.kpi].counted}")
    if check.threshold.versus:
        values["reference"] = words(f"reference.{check.threshold.versus}")
    return values


def _said(value: float | None, cause: Cause, words: Words) -> str:
    if value is None:
        return words("reason.none")
    return percent(value) if cause.kind == "confidence" else f"{value:,.0f}"
