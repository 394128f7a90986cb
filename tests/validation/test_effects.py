"""Effect sizes are what their names say, and are compared with what is usual."""

import math

import numpy as np
import pytest

from validation.effects import Baseline, Effect, measure, rank_correlations, with_usual


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


def test_relations_are_seen_where_no_column_moves_by_itself() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 4000))
    old = {"x": first, "y": 0.8 * first + 0.6 * second}
    effects = measure(old, {"x": first, "y": generator.permutation(old["y"])})
    by_kind = {
        kind: max(each.value for each in effects if each.kind == kind) for kind in ("inputs", "relations")
    }
    assert by_kind["inputs"] < 0.01
    assert by_kind["relations"] == pytest.approx(0.78, abs=0.05)


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    columns = {"x": generator.normal(size=300), "y": generator.gamma(1, size=300), "c": np.ones(300)}
    matrix = rank_correlations(columns, ["x", "y", "c"])
    assert matrix[0, 1] == pytest.approx(spearmanr(columns["x"], columns["y"])[0])
    assert matrix[0, 2] == 0


def test_what_is_usual_is_what_stretches_of_the_reference_differ_by() -> None:
    season = np.repeat(np.arange(8.0), 500) + np.random.default_rng(0).normal(size=4000)
    calm = np.random.default_rng(1).normal(size=4000)
    baseline = Baseline.of({"season": season, "calm": calm}, np.repeat(np.arange(8), 500), ())
    effects = {
        (each.subject, each.measure): each
        for each in baseline.compare({"season": season[:500], "calm": calm[:500]})
    }
    assert effects["season", "shift"].usual > 1
    assert effects["calm", "shift"].usual < 0.1


def test_too_few_stretches_say_nothing_of_what_is_usual() -> None:
    one = Effect(kind="inputs", subject="x", measure="shift", value=1.0)
    assert with_usual([one], [[one]] * 3)[0].usual == 0
    assert with_usual([one], [[one]] * 4)[0].usual == 1
