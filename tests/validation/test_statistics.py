"""The metrics are scikit-learn's, a resample is a weight vector, and the intervals cover what they claim."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import binom
from sklearn import metrics as sklearn_metrics

from validation.samples import quantile_interval, ratio_interval, samples_needed, share_interval
from validation.statistics import (
    METRICS,
    Scored,
    block_length_for,
    freedom,
    interval,
    paired_interval,
    resample_weights,
    unpaired_interval,
    widening,
)

SKLEARN = {
    "auroc": sklearn_metrics.roc_auc_score,
    "average_precision": sklearn_metrics.average_precision_score,
    "log_loss": sklearn_metrics.log_loss,
    "mse": sklearn_metrics.mean_squared_error,
    "mae": sklearn_metrics.mean_absolute_error,
}
BOOTSTRAP = {"confidence": 0.9, "num_resamples": 300, "block_length": 1, "seed": 0}


def windows(num_windows: int, steps: int, seed: int, noise: float = 1.0, num_levels: int = 20) -> Scored:
    """Event windows with masked steps and tied scores in (0, 1)."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((num_windows, steps)) < 0.3).astype(float)
    raw = 1 / (1 + np.exp(-(targets + noise * generator.normal(size=targets.shape))))
    scores = np.clip(np.round(raw * num_levels) / num_levels, 0.01, 0.99)
    mask = (generator.random(targets.shape) < 0.8).astype(float)
    mask[0] = 1
    targets[0, :2] = (0, 1)
    return Scored(scores, targets, mask)


@pytest.mark.parametrize("name", SKLEARN)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), num_levels=st.sampled_from([3, 20, 1000]))
def test_metrics_agree_with_sklearn_for_any_integer_weights(name: str, seed: int, num_levels: int) -> None:
    scored = windows(12, 15, seed, num_levels=num_levels)
    weights = np.random.default_rng(seed).integers(0, 4, size=(3, 12))
    weights[:, 0] = 1  # window 0 holds both classes
    counts = scored.mask > 0
    ours = METRICS[name].prepare(scored)(weights)
    for value, row in zip(ours, weights, strict=True):
        per_step = np.broadcast_to(row[:, None], counts.shape)[counts]
        assert value == pytest.approx(
            SKLEARN[name](scored.targets[counts], scored.scores[counts], sample_weight=per_step)
        )


@pytest.mark.parametrize("name", ["mse", "mae"])
def test_forecast_metrics_take_several_outputs(name: str) -> None:
    generator = np.random.default_rng(0)
    scores, targets = generator.normal(size=(2, 8, 5, 3))
    expected = SKLEARN[name](targets.ravel(), scores.ravel())
    assert METRICS[name](Scored(scores, targets, np.ones_like(scores))) == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
def test_a_score_that_is_not_a_number_makes_the_metric_undefined(name: str) -> None:
    scored = windows(10, 10, 0)
    scored.scores[0, 0] = math.nan
    result = interval(METRICS[name], scored, **BOOTSTRAP)
    assert math.isnan(result.value)
    assert math.isnan(result.low)


def test_no_positive_and_nothing_scored_are_undefined() -> None:
    scored = windows(10, 10, 0)
    no_positive = Scored(scored.scores, np.zeros_like(scored.targets), scored.mask)
    nothing = Scored(scored.scores, scored.targets, np.zeros_like(scored.mask))
    assert math.isnan(METRICS["average_precision"](no_positive))
    assert all(math.isnan(metric(nothing)) for metric in METRICS.values())


def test_what_is_masked_does_not_count() -> None:
    scored = windows(10, 10, 0)
    garbage = np.where(scored.mask > 0, scored.scores, math.nan)
    for metric in METRICS.values():
        assert metric(Scored(garbage, scored.targets, scored.mask)) == metric(scored)


@given(
    num_windows=st.integers(1, 60),
    block_length=st.integers(1, 20),
    seed=st.integers(0, 99),
    num=st.integers(1, 9),
)
def test_every_resample_draws_as_many_windows_as_there_are(
    num_windows: int, block_length: int, seed: int, num: int
) -> None:
    weights = resample_weights(num_windows, block_length, num, seed)
    assert weights.shape == (num, num_windows)
    assert (weights.sum(axis=1) == num_windows).all()


def test_resamples_keep_neighbours_together() -> None:
    weights = resample_weights(1000, 50, 200, seed=0)
    neighbours = np.mean([np.corrcoef(row, np.roll(row, 1))[0, 1] for row in weights])
    assert neighbours > 0.9
    alone = resample_weights(1000, 1, 200, seed=0)
    assert abs(np.mean([np.corrcoef(row, np.roll(row, 1))[0, 1] for row in alone])) < 0.05


def dependent_windows(generator: np.random.Generator, num_windows: int, memory: float) -> np.ndarray:
    """A stationary AR(1) series of window errors with mean 1 and variance 1."""
    series = np.empty(num_windows)
    series[0] = generator.normal()
    for index in range(1, num_windows):
        series[index] = memory * series[index - 1] + math.sqrt(1 - memory**2) * generator.normal()
    return series


def coverage(block_length: int, num_draws: int = 800) -> float:
    """Share of 90% intervals of a mean error that hold the true one; neighbours correlate by 0.6."""
    generator, hits = np.random.default_rng(1), 0
    for draw in range(num_draws):
        errors = (5 + dependent_windows(generator, 300, memory=0.6))[:, None]
        scored = Scored(errors, np.zeros_like(errors), np.ones_like(errors))
        found = interval(
            METRICS["mae"], scored, confidence=0.9, num_resamples=200, block_length=block_length, seed=draw
        )
        hits += found.low <= 5 <= found.high
    return hits / num_draws


def test_block_intervals_cover_where_windows_depend_on_their_neighbours() -> None:
    """Within five points of the 90% claimed; 800 draws know the share to about one point."""
    assert 0.85 < coverage(block_length=15) < 0.95
    assert coverage(block_length=1) < 0.75  # what ignoring the dependence would claim


def test_windows_that_share_steps_are_paid_for() -> None:
    """Blocks as long as the overlap keep 2.75 of the 4 units of variance that four windows in common make."""
    assert widening(10**6, 4, 4) == pytest.approx(math.sqrt(4 / 2.75), rel=1e-4)
    assert widening(10**6, 4, 1) == pytest.approx(1, rel=1e-4)
    assert widening(60, 4, 1) == pytest.approx(math.sqrt(60 / 56))  # they spread about the sample's own mean
    assert 1 < widening(10**6, 40, 4) < 1.05
    scored = windows(100, 20, seed=3)
    options = {**BOOTSTRAP, "block_length": 4}
    plain = interval(METRICS["auroc"], scored, **options)
    wide = interval(METRICS["auroc"], scored, **options, overlap=4)
    assert (wide.high - wide.low) / (plain.high - plain.low) == pytest.approx(math.sqrt(4 / 2.75), rel=0.05)


def test_what_is_lost_to_blocks_is_known_exactly() -> None:
    """Mean and degrees of freedom of the spread that blocks of dependent windows have, over many samples."""
    generator, n, length, overlap = np.random.default_rng(0), 60, 4, 4
    pieces = generator.normal(size=(20_000, n + overlap - 1))
    samples = np.sum([pieces[:, shift : shift + n] for shift in range(overlap)], axis=0)
    weights = resample_weights(n, length, 2000, seed=1) - 1
    spread = ((samples @ (weights.T @ weights / len(weights))) * samples).sum(axis=1) / n**2
    assert samples.mean(axis=1).var() / spread.mean() == pytest.approx(
        widening(n, length, overlap) ** 2, rel=0.03
    )
    assert freedom(n, length, overlap) == pytest.approx(2 * spread.mean() ** 2 / spread.var(), rel=0.1)
    assert freedom(n, length, 1) == n / length - 1
    assert freedom(3, 4, 1) == 0


def test_paired_difference_is_tighter_than_two_separate_intervals() -> None:
    reference = windows(100, 20, seed=3)
    better = Scored(reference.scores + 0.02 * (2 * reference.targets - 1), reference.targets, reference.mask)
    options = {**BOOTSTRAP, "block_length": 5}
    paired = paired_interval(METRICS["auroc"], better, reference, **options)
    alone = interval(METRICS["auroc"], better, **options)
    assert paired.value == pytest.approx(METRICS["auroc"](better) - METRICS["auroc"](reference))
    assert paired.high - paired.low < (alone.high - alone.low) / 3
    assert paired.low > 0


def test_two_spans_are_compared_without_pairing() -> None:
    easy, hard = windows(80, 20, seed=1, noise=0.5), windows(60, 20, seed=2, noise=2.0)
    worse = unpaired_interval(METRICS["auroc"], hard, easy, **BOOTSTRAP)
    assert worse.value == pytest.approx(METRICS["auroc"](hard) - METRICS["auroc"](easy))
    assert worse.low < worse.value < worse.high < 0
    assert worse.n == 60
    alike = unpaired_interval(METRICS["auroc"], windows(80, 20, seed=3), windows(60, 20, seed=4), **BOOTSTRAP)
    assert alike.low < 0 < alike.high
    too_few = unpaired_interval(METRICS["auroc"], windows(80, 20, 1), windows(4, 20, 2), **BOOTSTRAP)
    assert math.isnan(too_few.low)


def test_a_model_against_itself_differs_by_exactly_nothing() -> None:
    scored = windows(50, 10, seed=0)
    result = paired_interval(METRICS["average_precision"], scored, scored, **BOOTSTRAP)
    assert (result.value, result.low, result.high) == (0, 0, 0)


def test_subjects_scored_on_other_windows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different windows"):
        paired_interval(METRICS["auroc"], windows(20, 5, 0), windows(20, 5, 1), **BOOTSTRAP)


def test_too_few_blocks_give_no_interval() -> None:
    result = interval(METRICS["mse"], windows(40, 5, 0), **{**BOOTSTRAP, "block_length": 20})
    assert math.isfinite(result.value)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def test_resamples_without_a_positive_are_counted_and_too_many_give_no_interval() -> None:
    scored = windows(40, 10, 0)
    rare = np.zeros_like(scored.targets)
    rare[0, :3] = 1  # a single window with positives: absent from about 37% of the resamples
    result = interval(METRICS["auroc"], Scored(scored.scores, rare, np.ones_like(rare)), **BOOTSTRAP)
    assert 0.25 < result.num_skipped / 300 < 0.5
    assert math.isnan(result.low)


def test_a_slice_counts_only_the_windows_it_occurs_in() -> None:
    scored = windows(40, 10, 0)
    keep = np.zeros((40, 1), dtype=bool)
    keep[10:30] = True
    part = scored.restrict(keep)
    assert part.num_windows == 40
    assert interval(METRICS["mse"], part, **BOOTSTRAP).n == 20
    assert METRICS["mse"](part) == pytest.approx(
        METRICS["mse"](Scored(scored.scores[10:30], scored.targets[10:30], scored.mask[10:30]))
    )


def test_ratio_of_latency_quantiles_covers_the_true_ratio() -> None:
    generator, hits = np.random.default_rng(0), 0
    for seed in range(200):
        a, b = 2 * generator.lognormal(sigma=0.2, size=40), generator.lognormal(sigma=0.2, size=60)
        found = ratio_interval(a, b, quantile=0.5, confidence=0.9, num_resamples=300, seed=seed)
        hits += found.low <= 2 <= found.high
        assert found.n == 40
    assert 0.83 < hits / 200 < 0.97


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [30, 60, 400])
def test_either_end_of_a_quantile_of_timings_errs_as_seldom_as_stated(quantile: float, n: int) -> None:
    """2.5% at each end; a bootstrap's upper end at the 99th percentile of 30 errs in 73% of draws."""
    generator, truth, draws = np.random.default_rng(0), float(np.exp(0.5 * ndtri(quantile))), 2000
    found = [
        quantile_interval(generator.lognormal(sigma=0.5, size=n), quantile, confidence=0.95)
        for _ in range(draws)
    ]
    allowed = 0.025 + 3 * math.sqrt(0.025 * 0.975 / draws)
    assert sum(each.high < truth for each in found) / draws <= allowed
    assert sum(each.low > truth for each in found) / draws <= allowed
    assert all(math.isfinite(each.high) for each in found) == (n >= samples_needed(quantile, 0.95))


def test_a_quantile_says_how_many_timings_it_takes() -> None:
    assert [samples_needed(each, 0.95) for each in (0.5, 0.9, 0.99)] == [6, 36, 368]
    few, enough = np.arange(35.0), np.arange(36.0)
    assert quantile_interval(few, 0.9, confidence=0.95).high == math.inf
    assert quantile_interval(enough, 0.9, confidence=0.95).high == 35
    assert quantile_interval(np.arange(5.0), 0.5, confidence=0.95).low == -math.inf


def test_a_share_is_bounded_exactly_at_either_end() -> None:
    for hits, low, high in ((0, 0.0, 1 - 0.025 ** (1 / 400)), (400, 0.025 ** (1 / 400), 1.0)):
        found = share_interval(hits, 400, confidence=0.95)
        assert (found.low, found.value, found.high) == pytest.approx((low, hits / 400, high))
    some = share_interval(9, 400, confidence=0.95)
    assert binom.sf(8, 400, some.low) == pytest.approx(0.025)
    assert binom.cdf(9, 400, some.high) == pytest.approx(0.025)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [1.0, 0.0]])
def test_timings_that_are_none_or_no_numbers_give_no_ratio(samples: list[float]) -> None:
    bad, good = np.array(samples), np.ones(10)
    for a, b in ((bad, good), (good, bad)):
        result = ratio_interval(a, b, confidence=0.9, num_resamples=100, seed=0)
        assert math.isnan(result.value)
        assert math.isnan(result.high)


def test_block_length_grows_with_windows_and_overlap() -> None:
    assert block_length_for(8) == 2
    assert block_length_for(1000, overlap=3) == pytest.approx(10, abs=1)
    assert block_length_for(1000, overlap=25) == 25


def test_a_thousand_resamples_of_two_hundred_windows_take_seconds() -> None:
    candidate = windows(200, 256, seed=0, num_levels=10**6)
    reference = Scored(candidate.scores[:, ::-1], candidate.targets, candidate.mask)
    start = time.process_time()  # of this process alone, whatever else the machine does
    paired_interval(
        METRICS["average_precision"],
        candidate,
        reference,
        confidence=0.95,
        num_resamples=1000,
        block_length=6,
        seed=0,
    )
    assert time.process_time() - start < 8  # about 1.7 s
