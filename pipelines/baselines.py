"""The simple model that a network has to be worth more than, fitted anew in every run.

event: gradient boosting on recent outcomes; forecast: one ridge regression from past to future values;
detect: distance from the principal components of each entity. Nothing fitted is stored: only its scores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.windows import WindowBatch, Windows
from pipelines.scoring import Array, Report, Scores, collect_scores
from validation.record import Record

RECENT = 300
_FIT_WINDOWS = 600
PARAMETERS: dict[str, dict[str, Any]] = {
    "event": {"learning_rate": 0.06, "max_iter": 120, "l2_regularization": 1.0, "random_state": 0},
    "forecast": {"alpha": 100.0},
    "detect": {"n_components": 0.9},  # share of the variance
}
"""What each task's baseline is fitted with."""
Scorer = Callable[[WindowBatch], Array]


class BaselineRecipe(Record):
    """What decides a baseline's scores; its digest names the baseline."""

    snapshot: str
    spec: str
    """Digest of the dataset file's content."""
    seed: int = 0


def score_baseline(windows: Windows, parts: list[str], folder: Path, report: Report) -> list[Scores]:
    """Fit the task's baseline on the training part and score the evaluation windows of `parts`."""
    fit = {"event": _fit_event, "forecast": _fit_forecast, "detect": _fit_detect}[windows.spec.task]
    recipe = recipe_of(windows)
    report("fitting the simple baseline", 0, 1)
    scorer = fit(windows, np.random.default_rng(recipe.seed))
    report("fitting the simple baseline", 1, 1)
    return [
        collect_scores(windows, part, scorer, "baseline", recipe.digest(), folder, report) for part in parts
    ]


def recipe_of(windows: Windows) -> BaselineRecipe:
    return BaselineRecipe(snapshot=windows.snapshot.content_hash, spec=windows.spec.digest())


def _sample(windows: Windows, random: np.random.Generator) -> WindowBatch:
    cutoffs = windows.cutoffs("train")
    return windows.batch(random.choice(cutoffs, size=min(_FIT_WINDOWS, len(cutoffs)), replace=False))


# event --------------------------------------------------------------------------------------------


def _fit_event(windows: Windows, random: np.random.Generator) -> Scorer:
    from sklearn.ensemble import HistGradientBoostingClassifier

    batch = _sample(windows, random)
    features, categorical = _event_features(windows, batch)
    asked = batch.target_mask[:, windows.lookback :, 0] > 0
    model = HistGradientBoostingClassifier(
        **PARAMETERS["event"],
        categorical_features=categorical,  # pyright: ignore[reportArgumentType] - its stub knows one form of three
    )
    model.fit(features[asked], batch.target[:, windows.lookback :, 0][asked])

    def score(batch: WindowBatch) -> Array:
        features, _ = _event_features(windows, batch)
        positive = model.predict_proba(features.reshape(-1, features.shape[-1]))[:, 1]
        return _at_horizon(windows, positive.reshape(*features.shape[:2], 1))

    return score


def _event_features(windows: Windows, batch: WindowBatch) -> tuple[np.ndarray, list[bool]]:
    """float [B, horizon, features]: what is known of each asked step, and the rate of recent known outcomes
    overall and in the step's own group of each slice column. With it, which features are categorical."""
    past = windows.lookback
    names, spec = windows.numeric_names, windows.spec
    outcome, is_known = batch.numeric[..., -1], batch.known[..., -1] > 0
    recent = is_known & (np.cumsum(is_known[:, ::-1], axis=1)[:, ::-1] <= RECENT)
    columns = [np.repeat(_rate(outcome, recent), spec.horizon, axis=1)]
    for position in _known_categories(windows):
        codes = batch.categorical[..., position]
        columns.append(_rate_by_group(outcome, recent, codes, past, windows.cardinalities[position]))
    ahead = (slice(None), slice(past, None), windows.known_ahead(names))
    columns += [*np.moveaxis(np.where(batch.known[ahead] > 0, batch.numeric[ahead], np.nan), -1, 0)]
    categories = [batch.categorical[:, past:, position] for position in _known_categories(windows)]
    is_small = [windows.cardinalities[position] < 255 for position in _known_categories(windows)]
    return np.stack([*columns, *categories], axis=-1), [False] * len(columns) + is_small


def _known_categories(windows: Windows) -> list[int]:
    spec = windows.spec
    return [position for position, name in enumerate(spec.categorical) if name in spec.known_future]


def _rate(outcome: np.ndarray, recent: np.ndarray) -> np.ndarray:
    """Mean recent outcome of each window, [B, 1]; NaN where none is known."""
    count = recent.sum(1, keepdims=True)
    return np.divide(
        (outcome * recent).sum(1, keepdims=True), count, out=np.full(count.shape, np.nan), where=count > 0
    )


def _rate_by_group(
    outcome: np.ndarray, recent: np.ndarray, codes: np.ndarray, past: int, cardinality: int
) -> np.ndarray:
    """Mean recent outcome of the group of every horizon step, [B, horizon]; NaN where its group has none."""
    cell = codes + cardinality * np.arange(len(codes))[:, None]
    size = cardinality * len(codes)
    total = np.bincount(cell.ravel(), (outcome * recent).ravel(), minlength=size)
    count = np.bincount(cell.ravel(), recent.ravel(), minlength=size)
    rate = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return rate[cell[:, past:]]


def _at_horizon(windows: Windows, values: np.ndarray) -> Array:
    """Values of the horizon's steps, [B, T, O], with zeros before it: the shape a model answers in."""
    return np.pad(values, ((0, 0), (windows.lookback, 0), (0, 0))).astype(np.float32)


# forecast -----------------------------------------------------------------------------------------


def _fit_forecast(windows: Windows, random: np.random.Generator) -> Scorer:
    """One linear map from a column's past to its future, shared by all columns (NLinear, Zeng 2023)."""
    from sklearn.linear_model import Ridge

    past, future = _paths(windows, _sample(windows, random))
    model = Ridge(**PARAMETERS["forecast"]).fit(past, future)

    def score(batch: WindowBatch) -> Array:
        past, _ = _paths(windows, batch)
        last = _last_values(windows, batch)
        paths = model.predict(past).reshape(len(last), -1, windows.horizon).transpose(0, 2, 1)
        return _at_horizon(windows, paths + last)

    return score


def _paths(windows: Windows, batch: WindowBatch) -> tuple[np.ndarray, np.ndarray]:
    """Past and future of every window and column, one per row, relative to the last known value."""
    relative = batch.target - _last_values(windows, batch)
    rows = relative.transpose(0, 2, 1).reshape(-1, relative.shape[1])
    return rows[:, : windows.lookback], rows[:, windows.lookback :]


def _last_values(windows: Windows, batch: WindowBatch) -> np.ndarray:
    return batch.target[:, windows.lookback - 1 : windows.lookback]


# detect -------------------------------------------------------------------------------------------


def _fit_detect(windows: Windows, random: np.random.Generator) -> Scorer:
    """What the principal components of an entity's training rows (90% of the variance) leave unexplained."""
    from sklearn.decomposition import PCA

    entity = windows.column("entity").astype(str)
    trained = np.isin(np.arange(len(entity)), np.nonzero(windows.parts == 0)[0])
    models = {
        name: PCA(**PARAMETERS["detect"]).fit(windows.targets[trained & (entity == name)])
        for name in np.unique(entity[trained])
    }

    def score(batch: WindowBatch) -> Array:
        errors = np.empty((*batch.rows.shape, 1), np.float32)
        for index, (rows, values) in enumerate(zip(batch.rows, batch.target, strict=True)):
            model = models[entity[rows[0]]]
            errors[index, :, 0] = ((values - model.inverse_transform(model.transform(values))) ** 2).mean(-1)
        return errors

    return score
