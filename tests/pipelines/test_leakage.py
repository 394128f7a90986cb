"""Through everything that answers: what cannot be known at the cutoff changes no prediction, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.baselines import _fit_event
from pipelines.data.spec import DatasetSpec, ModelSection, load_spec
from pipelines.data.windows import WindowBatch, Windows
from pipelines.training_plan import TrainingPlan
from tests.futures import with_another_future
from tests.tiny_rollout import ROOT, train_tiny, windows_of

Answer = Callable[[WindowBatch], np.ndarray]


@pytest.fixture(scope="module")
def spec() -> DatasetSpec:
    """The real flights with a small model."""
    small = {
        "lookback": 256,
        "horizon": 64,
        "stride": 64,
        "model": ModelSection(
            width=16, num_layers=2, num_heads=2, num_kv_heads=2, ffn_width=16, block_size=32
        ),
        "training": TrainingPlan(num_steps=6, steps_per_epoch=6, warmup_steps=1, tokens_per_step=1280),
    }
    return load_spec(ROOT / "infra" / "datasets" / "flights.yaml").model_copy(update=small)


@pytest.fixture(scope="module")
def flights(spec: DatasetSpec, tmp_path_factory: pytest.TempPathFactory) -> Windows:
    return windows_of(spec, tmp_path_factory.mktemp("flights"))


@pytest.fixture(scope="module")
def answers(flights: Windows, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """Everything that may be asked: the trained model, dense and at two budgets, and the simple baseline."""
    import torch

    from pipelines.checkpoint import load_model
    from pipelines.scoring import _model_scores
    from sparse_model.config import Budget

    checkpoint, _ = train_tiny(flights, "sparse", tmp_path_factory.mktemp("model"))
    model, device = load_model(checkpoint), torch.device("cpu")

    def asked(budget: Budget | None) -> Answer:
        def answer(batch: WindowBatch) -> np.ndarray:
            with torch.inference_mode():
                return _model_scores(model, batch, budget, device)

        return answer

    models = {"dense": asked(None), "half": asked(Budget(0.5)), "eighth": asked(Budget(0.125))}
    return {**models, "baseline": _fit_event(flights, np.random.default_rng(0))}


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_no_prediction_changes_with_what_is_not_known_at_the_cutoff(
    share: float, flights: Windows, answers: dict[str, Answer]
) -> None:
    cutoffs = flights.cutoffs("test")
    cutoff = np.array([cutoffs[round(share * (len(cutoffs) - 1))]])
    batches = [each.batch(cutoff) for each in (flights, with_another_future(flights, int(cutoff[0]), seed=3))]
    horizon = slice(flights.lookback, None)
    assert (batches[0].target[:, horizon] != batches[1].target[:, horizon]).all()
    for name, answer in answers.items():
        one, two = (answer(batch)[:, horizon] for batch in batches)
        np.testing.assert_array_equal(one, two, err_msg=name)
        assert one.std() > 0, name


def test_predictions_do_change_with_what_is_known(flights: Windows, answers: dict[str, Answer]) -> None:
    """The comparison above can fail: seen from a later cutoff, the same change shows in every answer."""
    cutoff = int(flights.cutoffs("test")[3])
    later = np.array([cutoff + 200])
    batches = [each.batch(later) for each in (flights, with_another_future(flights, cutoff, seed=3))]
    for name, answer in answers.items():
        one, two = (answer(batch) for batch in batches)
        assert not np.array_equal(one, two), name


def test_the_flights_are_the_real_ones(flights: Windows) -> None:
    assert flights.snapshot.num_rows == 336_776
    assert Path(flights.snapshot.uri).is_file()
