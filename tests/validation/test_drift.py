"""Half a standard deviation is found, quiet batches stay quiet, and performance outranks what moved."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from validation.drift import DriftPolicy, DriftReport, PerformanceChange, detect_drift
from validation.effects import Baseline, Effect
from validation.estimation import Estimate
from validation.policy import load_policy
from validation.statistics import Interval

ROOT = Path(__file__).parents[2]
POLICY: DriftPolicy = load_policy(ROOT / "infra" / "rollout.yaml").drift
ROWS = (20_000, 2000)


def columns(seed: int, num_rows: int = 2000, shift: float = 0.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "load": generator.normal(size=num_rows) + shift,
        "heat": generator.gamma(2, size=num_rows) + shift,
        "site": generator.choice(["a", "b", "c"], num_rows),
    }


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return Baseline.of(columns(0, 20_000), np.repeat(np.arange(10), 2000), ["site"])


def detected(
    baseline: Baseline, batch: dict[str, np.ndarray], earlier: Sequence[DriftReport] = ()
) -> DriftReport:
    return detect_drift(baseline.compare(batch), ROWS, POLICY, earlier=earlier)


def effect(strength: float, kind: str = "inputs", subject: str = "load", measure: str = "shift") -> Effect:
    """So many times its limit."""
    return Effect.model_validate(
        {
            "kind": kind,
            "subject": subject,
            "measure": measure,
            "value": strength * POLICY.floors.of(measure),  # type: ignore[arg-type]
        }
    )


def performance(low: float, high: float) -> PerformanceChange:
    change = Interval(value=(low + high) / 2, low=low, high=high, n=50)
    return PerformanceChange(metric="auroc", higher_is_better=True, reference_value=0.8, change=change)


def test_quiet_batches_stay_quiet(baseline: Baseline) -> None:
    assert [detected(baseline, columns(seed)).decision for seed in range(1, 21)] == ["none"] * 20


def test_half_a_standard_deviation_is_found_and_named(baseline: Baseline) -> None:
    said: list[DriftReport] = []
    for seed in range(1, 4):
        said.append(detected(baseline, columns(seed, shift=0.5), said))
    assert {report.decision for report in said} != {"none"}
    assert {each.subject for each in said[-1].noted} >= {"load", "heat"}
    assert any(reason.startswith("load moved by 0.") for reason in said[-1].reasons)
    assert DriftReport.model_validate_json(said[-1].model_dump_json()) == said[-1]


def test_what_does_not_last_is_no_news() -> None:
    once = detect_drift([effect(1.2)], ROWS, POLICY)
    gone = detect_drift([effect(0.5)], ROWS, POLICY, earlier=[once])
    again = detect_drift([effect(1.2)], ROWS, POLICY, earlier=[once, gone])
    lasting = detect_drift([effect(1.2)], ROWS, POLICY, earlier=[once] * (POLICY.debounce - 1))
    assert [each.decision for each in (once, gone, again, lasting)] == ["none", "none", "none", "watch"]


def test_an_alarm_rings_once_for_a_column_and_again_for_another() -> None:
    first = detect_drift([effect(9), effect(0.1, subject="heat")], ROWS, POLICY)
    still = detect_drift([effect(9), effect(0.1, subject="heat")], ROWS, POLICY, earlier=[first])
    quiet = [first, *[detect_drift([effect(0.1)], ROWS, POLICY)] * POLICY.remember]
    assert (first.decision, detect_drift([effect(9)], ROWS, POLICY, earlier=quiet).decision) == ("watch",) * 2
    moved = [effect(9), *[effect(0.1, subject=name) for name in "abc"]]
    calm = detect_drift(moved, ROWS, POLICY, earlier=[detect_drift(moved, ROWS, POLICY)])
    assert (calm.decision, still.noted) == ("none", calm.noted)
    both = detect_drift([*moved[:3], effect(9, subject="c")], ROWS, POLICY, earlier=[calm])
    assert both.decision == "watch"


def test_what_is_far_is_seen_at_once_and_trains_only_when_it_lasts() -> None:
    far = [effect(2 * POLICY.far, subject=name) for name in ("load", "heat")]
    first = detect_drift(far, ROWS, POLICY)
    assert first.decision == "watch"
    second = detect_drift(far, ROWS, POLICY, earlier=[first] * (POLICY.debounce - 1))
    assert second.decision == "retrain"
    assert second.reasons[0] == "2 of 2 features are far from the reference"


@pytest.mark.parametrize(("kind", "measure"), [("predictions", "shift"), ("selection", "missed")])
def test_what_the_model_says_and_reads_is_its_own_reason_to_train(kind: str, measure: str) -> None:
    quiet = [effect(0.1, subject=name) for name in "abcdef"]
    moved = [*quiet, effect(2 * POLICY.far, kind, "model", measure)]
    first = detect_drift(moved, ROWS, POLICY)
    assert detect_drift(moved, ROWS, POLICY, earlier=[first] * POLICY.debounce).decision == "retrain"


@pytest.mark.parametrize(
    ("change", "moved", "expected"),
    [
        ((-0.09, -0.05), False, "retrain"),  # certainly lost more than 5% of 0.8
        ((-0.09, 0.005), False, "watch"),
        ((-0.07, 0.01), False, "none"),  # probably not even that much
        ((-0.02, 0.01), False, "none"),
        ((-0.02, 0.01), True, "none"),  # everything moved, as was said before, and the model did not care
        ((-0.09, 0.005), True, "retrain"),
        ((math.nan, math.nan), True, "retrain"),  # too few windows to say
    ],
)
def test_known_performance_outranks_what_moved(
    change: tuple[float, float], moved: bool, expected: str
) -> None:
    effects = [effect(2 * POLICY.far if moved else 0.1)]
    before = [detect_drift(effects, ROWS, POLICY)] * POLICY.debounce
    report = detect_drift(effects, ROWS, POLICY, earlier=before, performance=performance(*change))
    assert report.decision == expected


def test_errors_that_grow_are_a_loss() -> None:
    growth = Interval(value=0.2, low=0.1, high=0.3, n=50)
    worse = PerformanceChange(metric="mse", higher_is_better=False, reference_value=1.0, change=growth)
    assert detect_drift([effect(0.1)], ROWS, POLICY, performance=worse).decision == "retrain"


@pytest.mark.parametrize(
    ("value", "error", "num_checked", "expected"),
    [
        (0.79, math.nan, 0, "none"),
        (0.6, math.nan, 0, "watch"),  # never checked: a look at the most
        (0.6, 0.02, 5, "retrain"),
        (0.75, 0.02, 5, "watch"),  # lost more than is allowed, by less than it errs
    ],
)
def test_an_estimate_counts_beyond_its_own_error(
    value: float, error: float, num_checked: int, expected: str
) -> None:
    guess = Estimate(metric="auroc", value=value, reference_value=0.8, error=error, num_checked=num_checked)
    assert detect_drift([effect(0.1)], ROWS, POLICY, estimate=guess).decision == expected


def test_a_handful_of_rows_is_no_proof_of_anything() -> None:
    report = detect_drift([effect(9)], (20_000, 20), POLICY)
    assert report.decision == "watch"
    assert "20 rows are too few" in report.reasons[0]


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was compared"):
        detect_drift([], ROWS, POLICY)


def test_outcomes_that_happen_more_often_for_weeks_are_told_and_by_themselves_train_nothing() -> None:
    """A week's share lies a sixth of a standard deviation to either side; then all lie half of one higher."""
    generator = np.random.default_rng(0)

    def weeks(count: int, more: float) -> list[np.ndarray]:
        shares = 0.1 + 0.3 * (generator.normal(0, 1 / 6, count) + more)
        return [generator.random(2000) < share for share in np.clip(shares, 0.01, 1)]

    known = np.concatenate(weeks(16, 0.0)).astype(float)
    stretches = np.arange(len(known)) // 2000
    baseline = Baseline.of({"late": known}, stretches, [], outcomes=["late"])

    def decisions(batches: list[np.ndarray]) -> list[str]:
        said: list[DriftReport] = []
        for late in batches:
            said.append(detected(baseline, {"late": late.astype(float)}, said))
        return [each.decision for each in said]

    assert set(decisions(weeks(12, 0.0))) == {"none"}
    assert "watch" in (raised := decisions(weeks(3, 0.5)))
    assert "retrain" not in raised
