"""Half a standard deviation is found, quiet batches stay quiet, and performance outranks inputs."""

import math

import numpy as np
import pytest

from validation.drift import DriftPolicy, DriftReport, PerformanceChange, detect_drift, feature_drift
from validation.statistics import Interval

POLICY = DriftPolicy(
    min_rows=1000,
    watch_psi=0.1,
    retrain_psi=0.25,
    retrain_share_of_features=0.5,
    performance_relative_margin=0.05,
)


def batch(seed: int, num_rows: int = 5000, shift: float = 0.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "load": generator.normal(size=num_rows) + shift,
        "heat": generator.gamma(2, size=num_rows) + shift,
        "site": generator.choice(["a", "b", "c"], num_rows),
    }


def performance(low: float, high: float) -> PerformanceChange:
    change = Interval(value=(low + high) / 2, low=low, high=high, n=50)
    return PerformanceChange(metric="auroc", higher_is_better=True, reference_value=0.8, change=change)


def test_quiet_batches_stay_quiet() -> None:
    decisions = [detect_drift(batch(0), batch(seed), POLICY).decision for seed in range(1, 31)]
    assert decisions == ["none"] * 30


def test_shifted_inputs_ask_for_a_training_and_say_which() -> None:
    report = detect_drift(batch(0), batch(1, shift=0.8), POLICY)
    assert report.decision == "retrain"
    assert report.reasons[0] == "2 of 3 features are far from the reference"
    assert any(reason.startswith("load is far from the reference (PSI") for reason in report.reasons)
    assert report.features[0].mean_shift == pytest.approx(0.8, abs=0.1)
    assert DriftReport.model_validate_json(report.model_dump_json()) == report


def test_half_a_standard_deviation_is_noticed() -> None:
    assert all(
        detect_drift(batch(0), batch(seed, shift=0.5), POLICY).decision != "none" for seed in range(1, 11)
    )


def test_one_moved_column_is_watched() -> None:
    moved = {**batch(1), "load": batch(1, shift=3)["load"]}
    assert detect_drift(batch(0), moved, POLICY).decision == "watch"


def test_effect_sizes_are_what_their_names_say() -> None:
    reference, moved = np.arange(1000.0), np.arange(1000.0) + 500
    drift = feature_drift("x", reference, moved)
    assert drift.ks == pytest.approx(0.5)
    assert drift.mean_shift == pytest.approx(500 / reference.std())
    assert drift.total_variation == pytest.approx(0.5, abs=0.01)
    same = feature_drift("x", reference, reference)
    assert (same.psi, same.ks, same.mean_shift, same.total_variation) == (0, 0, 0, 0)


def test_psi_of_categories_is_its_formula() -> None:
    reference, moved = np.repeat(["a", "b"], [50, 50]), np.repeat(["a", "b"], [80, 20])
    expected = 0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5)
    drift = feature_drift("x", reference, moved)
    assert drift.psi == pytest.approx(expected)
    assert drift.total_variation == pytest.approx(0.3)
    assert feature_drift("x", reference, np.repeat(["c"], 10)).psi > 1


def test_numbers_declared_categorical_are_compared_as_categories() -> None:
    codes = np.array([1, 2, 3] * 500)
    shuffled = {"code": np.array([1, 3, 2] * 500)}
    report = detect_drift({"code": codes}, shuffled, POLICY, categorical=["code"])
    assert (report.features[0].psi, report.features[0].ks) == (0, None)


def test_values_that_go_missing_are_drift() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=4000)
    holes = np.where(generator.random(4000) < 0.4, math.nan, values)
    drift = feature_drift("x", values, holes)
    assert drift.psi > POLICY.retrain_psi
    assert drift.missing_share_batch == pytest.approx(0.4, abs=0.03)
    sites = np.array(["a", None, None, "a"], dtype=object)
    assert feature_drift("x", sites, sites).missing_share_batch == 0.5


def test_a_stuck_or_all_missing_sensor_is_drift_and_no_crash() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=2000)
    assert feature_drift("x", values, np.zeros(2000)).psi > 1
    assert feature_drift("x", np.zeros(2000), values).psi > 1
    assert feature_drift("x", np.zeros(2000), np.full(2000, 5.0)).mean_shift == math.inf
    assert feature_drift("x", values, np.full(2000, math.nan)).psi > 1
    assert feature_drift("x", np.full(2000, math.nan), values).psi > 1


def test_moved_predictions_ask_for_a_training() -> None:
    scores = np.random.default_rng(0).random(5000)
    report = detect_drift(batch(0), batch(1), POLICY, predictions=(scores, scores**3))
    assert report.decision == "retrain"
    assert report.reasons[0].startswith("prediction is far from")


@pytest.mark.parametrize(
    ("change", "shift", "expected"),
    [
        ((-0.09, -0.05), 0.0, "retrain"),  # certainly lost more than 5% of 0.8
        ((-0.09, 0.01), 0.0, "watch"),
        ((-0.02, 0.01), 0.0, "none"),
        ((-0.02, 0.01), 2.0, "watch"),  # everything moved and the model did not care
        ((-0.09, 0.01), 2.0, "retrain"),
        ((math.nan, math.nan), 0.0, "watch"),
    ],
)
def test_known_performance_outranks_moved_inputs(
    change: tuple[float, float], shift: float, expected: str
) -> None:
    report = detect_drift(batch(0), batch(1, shift=shift), POLICY, performance=performance(*change))
    assert report.decision == expected


def test_errors_that_grow_are_a_loss() -> None:
    growth = Interval(value=0.2, low=0.1, high=0.3, n=50)
    worse = PerformanceChange(metric="mse", higher_is_better=False, reference_value=1.0, change=growth)
    assert detect_drift(batch(0), batch(1), POLICY, performance=worse).decision == "retrain"


def test_a_handful_of_rows_is_no_proof_of_anything() -> None:
    report = detect_drift(batch(0), batch(1, num_rows=20, shift=5), POLICY)
    assert report.decision == "watch"
    assert "20 rows are too few" in report.reasons[0]


def test_a_batch_without_a_column_is_refused() -> None:
    lacking = {name: values for name, values in batch(1).items() if name != "site"}
    with pytest.raises(ValueError, match="lacks site"):
        detect_drift(batch(0), lacking, POLICY)
