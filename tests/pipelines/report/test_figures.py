"""Numbers, bars and reasons: what a reader takes from a row has to be what the gate saw."""

import math
from collections.abc import Callable
from functools import partial

import pytest

import validation.kpis
from pipelines.report.bars import bar_of
from pipelines.report.figures import MINUS, between, kpi_value, number
from pipelines.report.reasons import reason_of
from pipelines.report.words import Words
from validation.evidence import Evidence, Look
from validation.gates import Check, Outcome, StagePolicy, judge
from validation.kpis import Kpi
from validation.statistics import Interval
from validation.thresholds import Threshold

EN, JA = Words("en"), Words("ja")
kpi = partial(validation.kpis.kpi, checkpoint="ours", snapshot="data")
BOUND = Threshold(kpi="latency_p50_ratio", at_most=1.0)


def ratio(value: float, low: float, high: float, n: int = 40) -> Kpi:
    return kpi("latency_p50_ratio", Interval(value=value, low=low, high=high, n=n, confidence=0.95))


def check_of(measured: Kpi | None, asked: Threshold = BOUND, **evidence: object) -> Check:
    policy = {
        "stage": "pilot",
        "thresholds": [asked],
        "min_windows": 30,
        "min_timings": 20,
        "min_processes": 1,
    }
    policy |= {"max_age_hours": 168 if "judged_at" in evidence else None}
    about = Evidence(
        checkpoint="ours",
        snapshot="data",
        task_metric="auroc",
        **{"references": {"dense": "theirs"}, "slices": ("site",), **evidence},  # type: ignore[arg-type]
    )
    verdict = judge([measured] if measured else [], StagePolicy.model_validate(policy), about)
    return verdict.checks[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (1234567.0, "1,234,567"),
        (0.0123456, "0.0123"),
        (12.345, "12.3"),
        (-0.5, f"{MINUS}0.500"),
        (math.nan, "–"),  # noqa: RUF001
        (math.inf, "∞"),
        (2e-7, "2.0e-07"),
        (None, "–"),  # noqa: RUF001
    ],
)
def test_a_number_has_three_digits_that_say_something(value: float | None, said: str) -> None:
    assert number(value) == said


def test_a_value_and_its_interval_have_the_same_places() -> None:
    assert between(0.002, -0.002, 0.006, sign=True) == f"+0.002 [{MINUS}0.002,\xa0+0.006]"
    assert between(1.05, 0.85, 1.25) == "1.05 [0.85,\xa01.25]"
    assert between(1234.4, 1200.2, 1260.8) == "1,234 [1,200,\xa01,261]"
    assert between(0.5, math.nan, math.nan) == "0.500"


def test_no_sign_is_shown_of_what_rounds_to_nothing() -> None:
    assert number(-0.0004, decimals=2) == "0.00"


def test_memory_is_shown_in_mib_and_what_is_not_measured_says_so() -> None:
    size = kpi("bundle_bytes", 3.0 * 2**20)
    assert (kpi_value(size, EN), kpi_value(size, JA)) == ("3.00\xa0MiB", "3.00\xa0MiB")
    assert (kpi_value(None, EN), kpi_value(None, JA)) == ("not measured", "未測定")
    assert kpi_value(kpi("payback_days", math.inf), EN) == "never"


def test_a_bar_lies_on_the_side_of_its_threshold_where_its_number_does() -> None:
    kept, broken = bar_of(check_of(ratio(0.5, 0.4, 0.6))), bar_of(check_of(ratio(1.5, 1.4, 1.6)))
    assert kept is not None
    assert broken is not None
    assert kept.value is not None
    assert broken.value is not None
    assert kept.value < kept.bound == kept.allowed_to
    assert broken.value > broken.bound
    assert (kept.allowed_from, kept.low, kept.high) == (
        0.0,
        pytest.approx(9.68, abs=0.01),
        pytest.approx(36.56, abs=0.01),
    )


def test_where_more_is_better_the_allowed_side_is_the_other_one() -> None:
    recall = kpi("selection_recall", Interval(value=0.6, low=0.55, high=0.65, n=40, confidence=0.95))
    bar = bar_of(check_of(recall, Threshold(kpi="selection_recall", at_least=0.5)))
    assert bar is not None
    assert (bar.allowed_from, bar.allowed_to) == (bar.bound, 100.0)


def test_what_never_pays_back_runs_to_the_end_of_its_bar_and_nothing_is_drawn_of_nothing() -> None:
    never = bar_of(check_of(kpi("payback_days", math.inf), Threshold(kpi="payback_days", at_most=365)))
    assert never is not None
    assert never.value == 100.0
    assert bar_of(check_of(None)) is None


CASES: dict[str, Callable[[], Check]] = {
    "keeps": lambda: check_of(ratio(0.5, 0.4, 0.6)),
    "straddles": lambda: check_of(ratio(1.0, 0.9, 1.1)),
    "breaks": lambda: check_of(ratio(1.5, 1.4, 1.6)),
    "few": lambda: check_of(ratio(0.5, 0.4, 0.6, n=3)),
    "unmeasured": lambda: check_of(None),
    "no_number": lambda: check_of(ratio(math.nan, 0.4, 0.6)),
    "no_group": lambda: check_of(
        None, Threshold(kpi="task_metric", slice="worst:site", relative_margin=0.1, versus="dense")
    ),
    "no_reference": lambda: check_of(
        None, Threshold(kpi="task_metric", relative_margin=0.1, versus="champion")
    ),
    "confidence": lambda: check_of(ratio(0.5, 0.4, 0.6).model_copy(update={"confidence": 0.8})),
    "foreign": lambda: check_of(ratio(0.5, 0.4, 0.6).model_copy(update={"checkpoint": "another"})),
    "other_windows": lambda: check_of(
        None,
        Threshold(kpi="task_metric", relative_margin=0.1, versus="dense"),
        not_comparable={"dense": "dense was not scored on the same windows: score it again on part test"},
    ),
    "asked": lambda: check_of(
        kpi("selection_recall", Interval(value=0.6, low=0.5, high=0.7, n=40, confidence=0.95)),
        Threshold(kpi="selection_recall", at_least=0.5),
        looks=tuple(Look(evidence=str(number), num_windows=40) for number in range(2)),
    ),
    "old": lambda: check_of(
        ratio(0.5, 0.4, 0.6), measured_at="2026-01-01T00:00:00+00:00", judged_at="2026-03-01T00:00:00+00:00"
    ),
    "undated": lambda: check_of(ratio(0.5, 0.4, 0.6), judged_at="2026-03-01T00:00:00+00:00"),
    "clock": lambda: check_of(
        ratio(0.5, 0.4, 0.6), measured_at="2026-03-02T00:00:00+00:00", judged_at="2026-03-01T00:00:00+00:00"
    ),
}


@pytest.mark.parametrize("form", CASES)
def test_every_reason_that_the_gate_gives_is_said_in_japanese_too(form: str) -> None:
    check = CASES[form]()
    english, is_english = reason_of(check, EN)
    japanese, is_japanese = reason_of(check, JA)
    assert is_english
    assert is_japanese
    assert any(ord(letter) > 0x2FFF for letter in japanese), japanese
    assert check.cause is not None
    assert check.cause.kind == form
    blank = dict.fromkeys(("found", "counted", "needed", "reference"), "")
    assert EN(f"reason.{form}", **blank).split()[0] in english
    assert check.outcome is {"keeps": Outcome.PASS, "breaks": Outcome.FAIL}.get(form, Outcome.HOLD)


def test_a_reason_of_a_record_that_kept_no_cause_stays_as_the_gate_wrote_it() -> None:
    old = check_of(None).model_copy(update={"cause": None})
    assert reason_of(old, JA) == (old.reason, False)
    assert "cause" not in old.model_dump()  # its digest is what it was
