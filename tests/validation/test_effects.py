"""Effect sizes are what their names say, and are compared with what is usual."""

import math

import numpy as np
import pytest

from validation.effects import LASTING, Baseline, Effect, measure, with_usual


def found(old: np.ndarray, new: np.ndarray, categorical: tuple[str, ...] = ()) -> dict[str, float]:
    return {effect.measure: effect.value for effect in measure({"x": old}, {"x": new}, categorical)}


def test_a_shift_is_in_standard_deviations() -> None:
    values = np.random.default_rng(0).normal(3, 2, 5000)
    assert found(values, values + 1)["shift"] == pytest.approx(1 / values.std())
    assert found(values, values) == {"shift": 0, "spread": 0, "missing": 0}


def test_a_wider_spread_is_a_log_ratio() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    assert found(values, 1.5 * values)["spread"] == pytest.approx(math.log(1.5))


def test_missing_values_are_a_difference_of_shares_and_no_shift() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=5000)
    holes = np.where(np.arange(5000) % 5 == 0, math.nan, values)
    effects = found(values, holes)
    assert effects["missing"] == pytest.approx(0.2)
    assert effects["shift"] < 0.05


def test_categories_move_by_total_variation_numbers_that_are_codes_too() -> None:
    old, new = np.repeat(["a", "b"], [50, 50]), np.repeat(["a", "c"], [80, 20])
    assert found(old, new) == {"shares": pytest.approx(0.5)}
    assert found(np.array([1, 2, 3] * 9), np.array([3, 1, 2] * 9), ("x",)) == {"shares": 0}


def test_columns_without_a_spread_or_without_a_value_are_no_crash() -> None:
    values = np.random.default_rng(0).normal(size=200)
    constant, nothing = np.zeros(200), np.full(200, math.nan)
    assert found(constant, np.where(np.arange(200) < 50, 1.0, 0.0))["shift"] == 0.25
    assert found(constant, constant)["shift"] == 0
    assert found(values, constant)["spread"] == pytest.approx(math.log(1000))
    assert found(values, nothing) == {"missing": 1.0}
    assert found(nothing, values) == {"missing": 1.0}


def outcomes(old: np.ndarray, new: np.ndarray) -> list[tuple[str, str, float]]:
    effects = measure({"late": old}, {"late": new}, outcomes=["late"])
    return [(effect.kind, effect.measure, effect.value) for effect in effects]


def test_how_often_an_outcome_happens_has_a_sign_and_those_still_unknown_say_nothing() -> None:
    old, new = np.repeat([0.0, 1.0], [90, 10]), np.repeat([0.0, 1.0, math.nan], [38, 12, 50])
    assert outcomes(old, new) == [("outcomes", "rate", pytest.approx((0.24 - 0.1) / 0.3))]
    assert outcomes(old, np.zeros(50)) == [("outcomes", "rate", pytest.approx(-0.1 / 0.3))]
    assert outcomes(old, np.full(50, math.nan)) == []
    assert outcomes(np.zeros(50), new) == [("outcomes", "rate", pytest.approx(0.24))]


def beside(columns: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[tuple[str, str], Effect]:
    """A batch beside eight stretches."""
    rows = len(next(iter(columns.values())))
    compared = Baseline.of(columns, np.arange(rows) * 8 // rows, ()).compare(batch)
    return {(each.subject, each.measure): each for each in compared}


@pytest.fixture(scope="module")
def together() -> dict[str, np.ndarray]:
    """Two columns that move together, day by day, and one by itself."""
    generator = np.random.default_rng(0)
    season = np.repeat(generator.normal(size=8), 500)
    own = generator.normal(size=(3, 4000))
    return {"x": season + own[0], "y": 2 * (season + own[0]) + 0.3 * own[1], "z": own[2]}


def test_what_moves_with_others_is_measured_by_what_they_leave_unsaid(
    together: dict[str, np.ndarray],
) -> None:
    last = {name: values[-500:] for name, values in together.items()}
    shifted = last | {"x": last["x"] + 0.5 * together["x"].std()}
    quiet, moved = beside(together, last), beside(together, shifted)
    assert abs(quiet["x", "level"].value) < 0.05
    assert 0.3 < moved["x", "level"].value < 0.6
    assert moved["x", "level"].value > 20 * moved["x", "level"].usual
    assert moved["x", "shift"].value < 3 * moved["x", "shift"].usual  # the season moves as far


def test_relations_are_seen_where_no_column_moves_by_itself(together: dict[str, np.ndarray]) -> None:
    last = {name: values[-500:] for name, values in together.items()}
    torn = beside(together, last | {"y": np.random.default_rng(1).permutation(last["y"])})
    assert torn["y", "shift"].value == beside(together, last)["y", "shift"].value
    assert torn["y", "relation"].value > 0.5
    assert torn["y", "scatter"].value > 1
    assert torn["z", "relation"].value < 0.2


def test_a_column_that_is_not_known_yet_says_nothing_and_changes_nothing(
    together: dict[str, np.ndarray],
) -> None:
    last = {name: values[-500:] for name, values in together.items()}
    late = {"outcome": (together["x"] > 1).astype(float)}
    base = Baseline.of({**together, **late}, np.arange(4000) // 500, (), ["outcome"])
    found = {
        (each.subject, each.measure): each.value
        for each in base.compare({**last, "outcome": np.full(500, math.nan)})
    }
    assert ("outcome", "level") not in found
    assert found["x", "scatter"] == pytest.approx(0, abs=0.1)


def test_what_is_usual_is_what_stretches_of_the_reference_differ_by() -> None:
    season = np.repeat(np.arange(8.0), 500) + np.random.default_rng(0).normal(size=4000)
    calm = np.random.default_rng(1).normal(size=4000)
    baseline = Baseline.of({"season": season, "calm": calm}, np.repeat(np.arange(8), 500), ())
    effects = {
        (each.subject, each.measure): each
        for each in baseline.compare({"season": season[:500], "calm": calm[:500]})
    }
    assert effects["season", "shift"].usual > 0.9
    assert effects["calm", "shift"].usual < 0.1


def test_usual_is_the_mean_of_stretches_in_a_row() -> None:
    one = Effect(kind="inputs", subject="x", measure="shift", value=1.0)
    assert with_usual([one], [[one]] * LASTING)[0].usual == 0  # too few
    flipping = [[one.model_copy(update={"value": value})] for value in (1.0, -1.0) * 30]
    assert with_usual([one], flipping)[0].usual == pytest.approx(1 / 3, rel=0.05)
