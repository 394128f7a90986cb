"""The table that a manager reads, and where the rollout stands in words."""

import math
from functools import partial

import pytest

import validation.kpis
from pipelines.check_rows import row_of
from pipelines.evaluation import Evaluation
from pipelines.release_log import Stage as RolloutStage
from pipelines.rollout import Release, RolloutState
from pipelines.summary import sentence_of
from validation.gates import Check, Evidence, Outcome, StagePolicy, Threshold, judge
from validation.kpis import Kpi
from validation.statistics import Interval

kpi = partial(validation.kpis.kpi, checkpoint="ours", snapshot="data")


def evaluation(*kpis: Kpi, thresholds: list[Threshold], stage: str = "pilot") -> Evaluation:
    policy = StagePolicy.model_validate(
        {"stage": stage, "thresholds": thresholds, "min_windows": 1, "min_timings": 1, "min_processes": 1}
    )
    evidence = Evidence(
        checkpoint="ours",
        snapshot="data",
        task_metric="auroc",
        references={"dense": "theirs"},
        slices=("site",),
    )
    verdict = judge(kpis, policy, evidence)
    return Evaluation.model_validate({"stage": stage, "subject": "pilot", "kpis": kpis, "verdict": verdict})


def cells(measured: Kpi | None, threshold: Threshold) -> tuple[str, str, str, str]:
    judged = evaluation(*([measured] if measured else []), thresholds=[threshold])
    [check] = judged.verdict.checks
    row = row_of(judged.stage, check)
    return row.kpi, row.value, row.threshold, row.verdict


def test_a_bound() -> None:
    ratio = kpi("latency_p50_ratio", Interval(value=0.5, low=0.4, high=0.61, n=30, confidence=0.95))
    asked = Threshold(kpi="latency_p50_ratio", at_most=1.0)
    assert cells(ratio, asked) == ("latency p50 ratio", "0.50 [0.40, 0.61] x", "at most 1", "PASS")


def test_a_margin_shows_the_sign_of_the_difference() -> None:
    difference = kpi(
        "auroc",
        Interval(value=-0.01, low=-0.03, high=0.01, n=30, confidence=0.95),
        versus="dense",
        reference_value=0.8,
        reference_checkpoint="theirs",
    )
    asked = Threshold(kpi="task_metric", relative_margin=0.02, versus="dense")
    name, value, bound, verdict = cells(difference, asked)
    assert (name, value) == ("auroc vs dense", "-0.010 [-0.030, +0.010]")
    assert (bound, verdict) == ("not worse by over 2%", "HOLD")


def test_bytes_are_shown_in_mib_and_what_decides_nothing_says_so() -> None:
    size = kpi("bundle_bytes", 3.0 * 2**20)
    asked = Threshold(kpi="bundle_bytes", at_most=2.0 * 2**20, severity="warn")
    assert cells(size, asked) == ("bundle bytes", "3 MiB", "at most 2 MiB", "FAIL (warn)")


def test_what_never_pays_back_says_never() -> None:
    days = kpi("payback_days", math.inf)
    asked = Threshold(kpi="payback_days", at_most=365, severity="dry_run")
    name, value, _, verdict = cells(days, asked)
    assert (name, value, verdict) == ("payback days", "does not pay back", "FAIL (dry run)")


def test_what_was_not_measured_says_so_and_holds() -> None:
    _, value, bound, verdict = cells(None, Threshold(kpi="selection_recall", at_least=0.5))
    assert (value, bound, verdict) == ("not measured", "at least 0.5", "HOLD")


def state(stage: str, checkpoint: str) -> RolloutState:
    release = Release(stage=RolloutStage(stage), champion=3, checkpoint=checkpoint, snapshot="data")
    return RolloutState(dataset="pump", releases=(release,))


def test_the_sentence_says_where_a_climb_stopped_and_why() -> None:
    held = evaluation(thresholds=[Threshold(kpi="selection_recall", at_least=0.5)])
    said = sentence_of((held,), state("pilot", "ours"))
    assert said.startswith("The climb stopped at the pilot gate with HOLD: selection_recall")
    assert "not measured" in said


@pytest.mark.parametrize(
    ("stage", "live", "said"),
    [
        ("steady", "ours", "Stage steady is reached"),
        ("steady", "other", "an earlier rollout"),
        ("training", "ours", "The edge gate passed, which was acted on before; the rollout was taken back"),
    ],
)
def test_the_sentence_says_what_is_live(stage: str, live: str, said: str) -> None:
    size = kpi("bundle_bytes", 1.0)
    passed = evaluation(size, thresholds=[Threshold(kpi="bundle_bytes", at_most=2.0)], stage="edge")
    assert passed.verdict.outcome is Outcome.PASS
    sentence = sentence_of((passed,), state(stage, live))
    assert said in sentence
    assert "version 3" in sentence


def test_a_row_is_made_of_every_kind_of_check() -> None:
    """No KPI is too odd for the table."""
    nan = kpi("peak_memory_ratio", math.nan)
    judged = evaluation(nan, thresholds=[Threshold(kpi="peak_memory_ratio", at_most=1.0)])
    [check] = judged.verdict.checks
    assert isinstance(check, Check)
    assert row_of(judged.stage, check).value.startswith("nan [")
