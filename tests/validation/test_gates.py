"""The gate passes on proof, fails on proof, and holds on everything else."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from validation.evidence import Evidence, Look, staleness
from validation.gates import Outcome, StagePolicy, Verdict, judge, worst
from validation.kpis import KINDS, Kpi, Reference, kpi
from validation.policy import STAGES, load_policy
from validation.statistics import Interval
from validation.thresholds import Threshold

POLICY = load_policy(Path(__file__).parents[2] / "infra" / "rollout.yaml")
EVIDENCE = Evidence(
    checkpoint="candidate",
    snapshot="data",
    task_metric="average_precision",
    references={"dense": "dense-model", "baseline": "trees", "champion": "live-model"},
    slices=("origin",),
)


def measured(name: str, low: float, value: float, high: float, **changes: Any) -> Kpi:
    found = Interval(value=value, low=low, high=high, n=100, confidence=0.95)
    made = kpi(name, found, checkpoint="candidate", snapshot="data")
    return made.model_copy(update=changes)


def difference(low: float, value: float, high: float, versus: Reference = "dense", **changes: Any) -> Kpi:
    fields = {"versus": versus, "reference_value": 0.3, "reference_checkpoint": EVIDENCE.references[versus]}
    return measured("average_precision", low, value, high, **{**fields, **changes})


def group(name: str, low: float, value: float, high: float, widened: float = 0.0, **changes: Any) -> Kpi:
    """A difference in one group, its part of the band wider by `widened` at both ends."""
    band = {"joint_low": low - widened, "joint_high": high + widened}
    return difference(low, value, high, slice=f"origin={name}", **{**band, **changes})


def stage(*thresholds: Threshold) -> StagePolicy:
    return StagePolicy(stage="pilot", thresholds=thresholds, min_windows=30, min_timings=20, min_processes=3)


def ask(threshold: Threshold, *kpis: Kpi, evidence: Evidence = EVIDENCE) -> Verdict:
    return judge(kpis, stage(threshold), evidence)


NOT_WORSE = Threshold(kpi="task_metric", relative_margin=0.02, versus="dense")  # allows -0.006 of 0.3
NOT_SLOWER = Threshold(kpi="latency_p50_ratio", at_most=1.0)
RECALL = Threshold(kpi="selection_recall", at_least=0.5)


@pytest.mark.parametrize(
    ("threshold", "evidence", "expected"),
    [
        (NOT_WORSE, difference(-0.005, -0.001, 0.002), "PASS"),
        (NOT_WORSE, difference(-0.010, -0.001, 0.002), "HOLD"),
        (NOT_WORSE, difference(-0.020, -0.010, -0.007), "FAIL"),
        (NOT_SLOWER, measured("latency_p50_ratio", 0.5, 0.6, 1.0), "PASS"),
        (NOT_SLOWER, measured("latency_p50_ratio", 0.9, 0.95, 1.01), "HOLD"),
        (NOT_SLOWER, measured("latency_p50_ratio", 1.01, 1.1, 1.2), "FAIL"),
        (RECALL, measured("selection_recall", 0.5, 0.6, 0.7), "PASS"),
        (RECALL, measured("selection_recall", 0.4, 0.6, 0.7), "HOLD"),
        (RECALL, measured("selection_recall", 0.1, 0.2, 0.4), "FAIL"),
    ],
)
def test_both_ends_of_the_interval_decide(threshold: Threshold, evidence: Kpi, expected: str) -> None:
    assert ask(threshold, evidence).outcome == expected


@pytest.mark.parametrize(("margin", "expected"), [(0.02, "PASS"), (0.005, "HOLD"), (0.0, "FAIL")])
def test_a_margin_points_the_right_way_for_errors_that_should_be_small(margin: float, expected: str) -> None:
    threshold = Threshold(kpi="mse", margin=margin, versus="dense")
    worse = difference(0.001, 0.004, 0.01).model_copy(update={"name": "mse"})
    assert ask(threshold, worse).outcome == expected


def test_the_reason_says_what_was_measured_and_what_was_allowed() -> None:
    own = measured("average_precision", 0.290, 0.312, 0.331)
    (reason,) = ask(NOT_WORSE, own, difference(-0.011, -0.004, 0.003)).reasons
    assert reason == (
        "average_precision 0.312 [0.29, 0.331] vs dense: difference -0.004 [-0.011, 0.003] at 95%, "
        "allowed -0.006: "
        "HOLD because the interval lies on both sides of it"
    )


GAPS = {
    "is not a possible number": difference(-0.001, math.nan, 0.001),
    "not candidate": difference(0, 0, 0, checkpoint="older"),
    "not data": difference(0, 0, 0, snapshot="other"),
    "10 windows are too few, 30 are needed": difference(0, 0, 0, n=10),
    "it was compared with older, not with dense": difference(0, 0, 0, reference_checkpoint="older"),
    "a share of it allows nothing": difference(0, 0, 0, reference_value=math.nan),
    "its interval states 90.0%, 95.0% is needed": difference(-0.005, 0, 0.005, confidence=0.9),
    "its interval states no confidence": difference(-0.005, 0, 0.005, confidence=None),
}


@pytest.mark.parametrize("words", GAPS)
def test_doubtful_evidence_holds_and_says_why(words: str) -> None:
    verdict = ask(NOT_WORSE, GAPS[words])
    assert verdict.outcome is Outcome.HOLD
    assert words in verdict.reasons[0]


def test_an_absent_champion_holds() -> None:
    alone = EVIDENCE.model_copy(update={"references": {"dense": "dense-model"}})
    threshold = Threshold(kpi="task_metric", margin=0, versus="champion")
    verdict = ask(threshold, difference(0.1, 0.2, 0.3, "champion"), evidence=alone)
    assert verdict.outcome is Outcome.HOLD
    assert "there is no champion to compare with" in verdict.reasons[0]


def test_nothing_asked_nothing_measured_or_measured_twice_holds() -> None:
    assert judge([], stage(), EVIDENCE).outcome is Outcome.HOLD
    assert ask(NOT_SLOWER).outcome is Outcome.HOLD
    fast = measured("latency_p50_ratio", 0.5, 0.6, 0.7)
    assert ask(NOT_SLOWER, fast, fast).outcome is Outcome.HOLD
    assert worst([]) is Outcome.HOLD


def test_a_change_that_never_pays_back_fails_rather_than_holds() -> None:
    threshold = Threshold(kpi="payback_days", at_most=365)
    never = kpi("payback_days", math.inf, checkpoint="candidate", snapshot="data")
    assert ask(threshold, never).outcome is Outcome.FAIL
    perhaps = Interval(value=200, low=100, high=math.inf, n=1)
    assert (
        ask(threshold, kpi("payback_days", perhaps, checkpoint="candidate", snapshot="data")).outcome
        == "HOLD"
    )


WORST_ORIGIN = Threshold(
    kpi="task_metric", relative_margin=0.1, versus="dense", slice="worst:*", min_group=50
)


def test_the_worst_group_decides_and_small_groups_do_not_count() -> None:
    fine = group("EWR", -0.01, 0.0, 0.01)
    harmed = group("JFK", -0.09, -0.06, -0.04)
    tiny = group("LGA", -0.9, -0.6, -0.4, n=49)
    assert ask(WORST_ORIGIN, fine, tiny).outcome is Outcome.PASS
    verdict = ask(WORST_ORIGIN, fine, harmed, tiny)
    assert verdict.outcome is Outcome.FAIL
    assert "for origin=JFK" in verdict.reasons[0]
    assert "worst of 2 groups of origin" in verdict.reasons[0]
    assert ask(WORST_ORIGIN, tiny).outcome is Outcome.HOLD
    assert ask(WORST_ORIGIN).outcome is Outcome.HOLD


def test_a_group_is_called_harmed_only_by_the_band_over_all_groups() -> None:
    """Its own interval alone would call it so, which among many groups happens by chance."""
    assert ask(WORST_ORIGIN, group("JFK", -0.09, -0.06, -0.04, widened=0.02)).outcome is Outcome.HOLD
    assert ask(WORST_ORIGIN, group("JFK", -0.09, -0.06, -0.04, widened=0.005)).outcome is Outcome.FAIL
    without = group("JFK", -0.09, -0.06, -0.04, joint_low=None, joint_high=None)
    assert ask(WORST_ORIGIN, without).outcome is Outcome.HOLD


def test_a_group_passes_by_its_own_interval() -> None:
    assert ask(WORST_ORIGIN, group("JFK", -0.02, 0.0, 0.02, widened=0.05)).outcome is Outcome.PASS


def test_a_dataset_without_slices_is_not_asked_about_them() -> None:
    no_slices = EVIDENCE.model_copy(update={"slices": ()})
    verdict = judge([difference(0, 0, 0)], stage(NOT_WORSE, WORST_ORIGIN), no_slices)
    assert [check.slice for check in verdict.checks] == [""]
    assert verdict.outcome is Outcome.PASS


def test_warnings_and_dry_runs_are_reported_and_decide_nothing() -> None:
    slow = measured("latency_p50_ratio", 2.0, 2.1, 2.2)
    for severity in ("warn", "dry_run"):
        watched = Threshold(kpi="latency_p50_ratio", at_most=1, severity=severity)
        verdict = judge([slow, difference(0, 0, 0)], stage(watched, NOT_WORSE), EVIDENCE)
        assert verdict.outcome is Outcome.PASS
        assert verdict.checks[0].outcome is Outcome.FAIL
        assert judge([slow], stage(watched), EVIDENCE).outcome is Outcome.HOLD


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kpi": "aurocc", "at_least": 0.5}, "did you mean 'auroc'"),
        ({"kpi": "auroc"}, "exactly one of"),
        ({"kpi": "auroc", "at_least": 0.5, "margin": 0.1, "versus": "dense"}, "exactly one of"),
        ({"kpi": "auroc", "margin": 0.1}, "go together with versus"),
        ({"kpi": "auroc", "at_most": 0.5}, "better when higher"),
        ({"kpi": "mse", "at_least": 0.5}, "better when lower"),
        ({"kpi": "auroc", "at_least": 1.5}, "decides nothing"),
        ({"kpi": "bundle_bytes", "at_most": -1}, "decides nothing"),
        ({"kpi": "task_metric", "at_least": 0.5}, "another metric in each job"),
        ({"kpi": "auroc", "at_least": math.nan}, "finite"),
    ],
)
def test_thresholds_that_contradict_themselves_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Threshold(**fields)


def perfect(threshold: Threshold, evidence: Evidence) -> Kpi:
    """Evidence that passes one threshold of the shipped policy with room to spare."""
    name = evidence.task_metric if threshold.kpi == "task_metric" else threshold.kpi
    is_higher_better = KINDS[name].higher_is_better
    best = float(is_higher_better) if threshold.versus is None else 0.5 if is_higher_better else -0.5
    column = threshold.slice.removeprefix("worst:")
    return measured(
        name,
        best,
        best,
        best,
        slice=f"{'origin' if column == '*' else column}=JFK" if column else "",
        versus=threshold.versus,
        reference_value=0.3,
        reference_checkpoint=evidence.references[threshold.versus] if threshold.versus else None,
        measured_at=evidence.measured_at,
        n=400,
    )


def all_thresholds(asked: StagePolicy) -> list[Threshold]:
    return [threshold for thresholds in asked.blessings().values() for threshold in thresholds]


NOW, YESTERDAY, LAST_MONTH = (
    "2026-03-02T12:00:00+00:00",
    "2026-03-01T12:00:00+00:00",
    "2026-02-01T12:00:00+00:00",
)
FRESH = EVIDENCE.model_copy(update={"measured_at": YESTERDAY, "judged_at": NOW})


SPOILS: list[dict[str, Any] | None] = [
    None,  # dropped
    *({end: bad} for end in ("value", "low", "high") for bad in (math.nan, -math.inf)),
    {"n": 0},
    {"checkpoint": "another"},
    {"snapshot": "another"},
]


@pytest.mark.parametrize(
    ("measured_at", "words"),
    [(None, "does not say when it was measured"), (LAST_MONTH, "696 hours ago, 168 are allowed"), (NOW, "")],
)
def test_a_kpi_that_is_old_or_undated_holds(measured_at: str | None, words: str) -> None:
    """The scores are fresh; the timings have a date of their own."""
    asked = stage(NOT_SLOWER).model_copy(update={"max_age_hours": 168})
    fast = measured("latency_p50_ratio", 0.5, 0.6, 0.7, measured_at=measured_at)
    verdict = judge([fast], asked, FRESH)
    assert verdict.outcome is (Outcome.HOLD if words else Outcome.PASS)
    assert words in "".join(verdict.reasons)


@pytest.mark.parametrize(
    ("name", "n", "needed"),
    [("latency_p99_ms", 367, 368), ("latency_p90_ms", 35, 36), ("latency_p50_ratio", 19, 20)],
)
def test_a_quantile_of_too_few_timings_holds_and_says_how_many_it_takes(
    name: str, n: int, needed: int
) -> None:
    threshold = Threshold(kpi=name, at_most=1000)
    verdict = ask(threshold, measured(name, 1, 2, math.inf, n=n))
    assert verdict.outcome is Outcome.HOLD
    assert f"{n} timings are too few, {needed} are needed" in verdict.reasons[0]
    assert ask(threshold, measured(name, 1, 2, 3, n=needed)).outcome is Outcome.PASS


def test_a_small_min_group_does_not_undercut_min_windows() -> None:
    """The stage asks for 30 windows, whatever less is said of its groups."""
    lax = WORST_ORIGIN.model_copy(update={"min_group": 1})
    assert ask(lax, group("JFK", -0.01, 0.0, 0.01, n=29)).outcome is Outcome.HOLD
    assert ask(lax, group("JFK", -0.01, 0.0, 0.01, n=30)).outcome is Outcome.PASS
    assert "none of 1 groups has 30 windows" in ask(lax, group("JFK", 0, 0, 0, n=29)).reasons[0]


@pytest.mark.parametrize("name", ["canary_error_rate", "shadow_disagreement", "canary_latency_ratio"])
def test_what_real_requests_said_has_to_state_its_confidence(name: str) -> None:
    threshold = Threshold(kpi=name, at_most=0.9)
    assert ask(threshold, measured(name, 0.1, 0.2, 0.3)).outcome is Outcome.PASS
    for confidence in (None, 0.9):
        doubtful = measured(name, 0.1, 0.2, 0.3, confidence=confidence)
        assert ask(threshold, doubtful).outcome is Outcome.HOLD


@pytest.mark.parametrize("name", STAGES)
def test_perfect_evidence_passes_every_stage_of_the_shipped_policy(name: Any) -> None:
    asked = POLICY.stage(name)
    verdict = judge([perfect(t, FRESH) for t in all_thresholds(asked)], asked, FRESH)
    assert verdict.outcome is Outcome.PASS, verdict.reasons
    assert verdict.blessing("quality") is verdict.blessing("serving") is Outcome.PASS
    assert verdict.policy_digest == POLICY.digest()


@given(data=st.data())
def test_spoiling_any_required_kpi_never_passes(data: st.DataObject) -> None:
    asked = POLICY.stage(data.draw(st.sampled_from(STAGES)))
    thresholds = all_thresholds(asked)
    kpis = [perfect(threshold, FRESH) for threshold in thresholds]
    required = [index for index, t in enumerate(thresholds) if t.severity == "required"]
    spoiled = data.draw(st.sets(st.sampled_from(required), min_size=1))
    for index in sorted(spoiled, reverse=True):
        spoil = data.draw(st.sampled_from(SPOILS))
        kept = [] if spoil is None else [kpis[index].model_copy(update=spoil)]
        kpis[index : index + 1] = kept
    verdict = judge(data.draw(st.permutations(kpis)), asked, FRESH)
    assert verdict.outcome is not Outcome.PASS
    assert verdict.reasons


@pytest.mark.parametrize("missing", ["quality", "serving"])
def test_one_blessing_alone_does_not_pass(missing: Any) -> None:
    asked = POLICY.stage("training")
    blessed = {name: [perfect(t, FRESH) for t in each] for name, each in asked.blessings().items()}
    verdict = judge([kpi for name in blessed if name != missing for kpi in blessed[name]], asked, FRESH)
    assert verdict.outcome is Outcome.HOLD
    assert verdict.blessing(missing) is Outcome.HOLD
    assert verdict.blessing("serving" if missing == "quality" else "quality") is Outcome.PASS


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"measured_at": LAST_MONTH}, "it was measured 696 hours ago, 168 are allowed"),
        ({"measured_at": None}, "does not say when"),
        ({"judged_at": None}, "does not say when"),
        ({"judged_at": LAST_MONTH}, "measured after it was judged"),
    ],
)
def test_old_or_undated_evidence_holds(times: dict[str, Any], words: str) -> None:
    asked, evidence = POLICY.stage("pilot"), FRESH.model_copy(update=times)
    verdict = judge([perfect(t, evidence) for t in all_thresholds(asked)], asked, evidence)
    assert verdict.outcome is Outcome.HOLD
    assert words in verdict.reasons[0]
    old = staleness(evidence, asked.max_age_hours, evidence.judged_at)
    assert old is not None
    assert words in old.words


def test_a_reference_that_was_not_scored_on_the_same_windows_holds() -> None:
    evidence = EVIDENCE.model_copy(update={"not_comparable": {"dense": "dense was scored on snapshot old"}})
    for kpis in ([], [difference(0.1, 0.2, 0.3)]):
        verdict = judge(kpis, stage(NOT_WORSE), evidence)
        assert verdict.outcome is Outcome.HOLD
        assert "dense was scored on snapshot old" in verdict.reasons[0]


def looked(times: int) -> Evidence:
    looks = tuple(Look(evidence=str(time), num_windows=100 * (time + 1)) for time in range(times))
    return EVIDENCE.model_copy(update={"looks": looks})


def test_asking_again_needs_more_certainty_and_ends() -> None:
    """20% of 5% is left to the second look: 99% two-sided. There is no third."""
    asked = stage(NOT_WORSE).model_copy(update={"looks": (0.8, 0.2)})
    at = {level: difference(-0.005, 0.0, 0.005, confidence=level) for level in (0.95, 0.96, 0.99)}
    assert judge([at[0.95]], asked, looked(1)).outcome is Outcome.HOLD
    assert judge([at[0.96]], asked, looked(1)).outcome is Outcome.PASS
    assert judge([at[0.96]], asked, looked(2)).outcome is Outcome.HOLD
    assert judge([at[0.99]], asked, looked(2)).outcome is Outcome.PASS
    ended = judge([at[0.99]], asked, looked(3))
    assert ended.outcome is Outcome.HOLD
    assert "asked for the 3rd time, 2 are allowed" in ended.reasons[0]


def test_exact_measurements_need_no_confidence() -> None:
    asked = stage(NOT_SLOWER).model_copy(update={"looks": (0.8, 0.2)})
    assert (
        judge([measured("latency_p50_ratio", 0.5, 0.5, 0.5, confidence=None)], asked, looked(2)).outcome
        == "PASS"
    )


@given(
    ends=st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)).map(sorted),
    margin=st.floats(0, 0.99),
)
def test_a_wider_margin_never_judges_worse(ends: list[float], margin: float) -> None:
    severity = {Outcome.PASS: 0, Outcome.HOLD: 1, Outcome.FAIL: 2}
    low, value, high = ends
    evidence = difference(low, value, high)
    narrow, wide = (
        ask(Threshold(kpi="task_metric", margin=m, versus="dense"), evidence).outcome
        for m in (margin, margin + 0.1)
    )
    assert severity[wide] <= severity[narrow]


def test_a_verdict_survives_json_and_is_a_pure_function() -> None:
    kpis = [difference(-0.01, math.nan, 0.01), measured("latency_p50_ratio", 0.5, 0.6, 0.7)]
    first, second = (judge(kpis, stage(NOT_WORSE, NOT_SLOWER), EVIDENCE) for _ in range(2))
    assert first.digest() == second.digest()
    again = Verdict.model_validate_json(first.model_dump_json())
    assert again.digest() == first.digest()
    assert again.checks[0].measured is not None
    assert math.isnan(again.checks[0].measured.value)
