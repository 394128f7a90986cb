"""Budgets by target: what is promised was measured, by its pessimistic end; what cannot be had is said."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.budgets import FILE, BudgetPoint, Calibration, Conditions, Cost, load_calibration
from pipelines.calibration import calibrate, cost_at_target
from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.job import Job, Prepared
from pipelines.registry import Tracker
from pipelines.release_log import ReleaseLog
from pipelines.retraining import dense_beside, measure_budgets
from pipelines.settings import Settings
from sparse_model.config import Budget
from tests.tiny_rollout import write_policy
from validation.data import DataReport
from validation.errors import InputError
from validation.policy import load_policy
from validation.statistics import Interval

MIB = 2**20


def around(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, n=40)


def cost(ms: float, mib: float) -> Cost:
    return Cost(
        latency_p50_ms=around(ms, 0.5),
        latency_p90_ms=around(2 * ms, 1),
        peak_memory_bytes=around(mib * MIB, MIB),
    )


def point(density: float, loss: float, ms: float, mib: float) -> BudgetPoint:
    return BudgetPoint(
        density=density,
        num_selected=round(32 * density),
        metric="auroc",
        task_metric=0.8 * (1 - loss),
        loss=around(loss, 0.01),
        cost=cost(ms, mib),
    )


CALIBRATION = Calibration(
    checkpoint="c" * 64,
    dense="d" * 64,
    snapshot="e" * 64,
    num_windows=100,
    dense_metric=0.8,
    dense_cost=cost(20, 400),
    points=(point(0.0625, 0.06, 5, 300), point(0.125, 0.03, 7, 320), point(0.25, 0.004, 11, 330)),
    conditions=Conditions(
        machine="Xeon", device="cpu", threads=2, num_steps=2304, num_timings=40, confidence=0.95
    ),
)


@pytest.mark.parametrize(
    ("targets", "density"),
    [
        ({"latency_ms": 24}, 0.25),
        ({"latency_ms": 22.9}, 0.125),  # 22 by the value, 23 by the pessimistic end
        ({"latency_ms": 11}, 0.0625),
        ({"memory_bytes": 321 * MIB}, 0.125),
        ({"max_loss": 0.5}, 0.0625),
        ({"max_loss": 0.05}, 0.125),
        ({"max_loss": 0.02}, 0.25),
        ({"latency_ms": 100, "max_loss": 0.05}, 0.125),
        ({"latency_ms": 15, "memory_bytes": 400 * MIB, "max_loss": 0.04}, 0.125),
    ],
)
def test_the_pessimistic_end_keeps_the_promise(targets: dict[str, float], density: float) -> None:
    assert CALIBRATION.budget_for(**targets) == Budget(density)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"latency_ms": 10}, "latency 10 ms cannot be kept: density 0.0625 comes nearest with up to 11 ms"),
        ({"memory_bytes": 100 * MIB}, "memory 100 MiB cannot be kept: density 0.0625 .* up to 301 MiB"),
        ({"max_loss": 0.01}, "loss 0.01 .* density 0.25 comes nearest with up to 0.014"),
        (
            {"latency_ms": 12, "max_loss": 0.02},
            "no measured one keeps every target: latency 12 ms allows densities 0.0625; "
            "loss 0.02 of dense's metric allows densities 0.25",
        ),
        ({}, "name a target"),
        ({"max_loss": -0.1}, "loss must be a number of at least 0"),
        ({"latency_ms": math.nan}, "latency must be a number of at least 0"),
    ],
)
def test_what_cannot_be_had_is_one_line_that_says_what_can(targets: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        CALIBRATION.budget_for(**targets)
    assert "\n" not in str(caught.value)
    if "densit" in words:
        assert "2,304 steps on 2 threads of Xeon" in str(caught.value)


def test_a_loss_without_an_interval_keeps_no_promise() -> None:
    """Too few windows to tell: no evidence is never a pass."""
    unknown = Interval(value=0.0, low=math.nan, high=math.nan, n=3)
    points = tuple(each.model_copy(update={"loss": unknown}) for each in CALIBRATION.points)
    unsure = CALIBRATION.model_copy(update={"points": points})
    with pytest.raises(InputError, match="too few windows to tell"):
        unsure.budget_for(max_loss=1.0)
    assert unsure.budget_for(latency_ms=24) == Budget(0.25)


@given(st.floats(0, 40), st.floats(0, 0.1))
def test_no_answer_breaks_a_promise_and_none_is_held_back(latency_ms: float, max_loss: float) -> None:
    def keeps(each: BudgetPoint) -> bool:
        return each.cost.latency_p90_ms.high <= latency_ms and each.loss.high <= max_loss

    possible = [each.density for each in CALIBRATION.points if keeps(each)]
    try:
        chosen = CALIBRATION.budget_for(latency_ms=latency_ms, max_loss=max_loss).density
    except InputError:
        chosen = None
    assert chosen == (min(possible) if possible else None)


def test_a_table_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not calibrated; run its rollout again"):
        load_calibration(tmp_path)
    (tmp_path / FILE).write_text('{"points": []}')
    with pytest.raises(InputError, match="not a calibration"):
        load_calibration(tmp_path)
    (tmp_path / FILE).write_text(CALIBRATION.model_dump_json())
    assert load_calibration(tmp_path) == CALIBRATION


@pytest.fixture(scope="module")
def job(store: Settings, tracker: Tracker, pump: Windows, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The tiny dataset, judged at every eighth step so that its ten days of validation carry an interval."""
    policy = load_policy(write_policy(tmp_path_factory.mktemp("policy")))
    spec = pump.spec.model_copy(update={"name": "calibrated", "stride": 8})
    return Job(replace(store, threads=1), spec, policy, tracker, ReleaseLog.open(store), lambda *_: None)


@pytest.fixture(scope="module")
def calibrated(job: Job, pump: Windows, trained: dict[str, Checkpoint]) -> tuple[Checkpoint, Calibration]:
    with job.tracker.run("calibrated", "training") as run_id:
        checkpoint = trained["sparse"].model_copy(update={"run_id": run_id})
    return checkpoint, calibrate(job, prepared_of(pump), checkpoint, trained["dense"])


def prepared_of(windows: Windows) -> Prepared:
    report: Any = DataReport.model_construct()
    kept = {"snapshot": windows.snapshot, "preprocessing": windows.preprocessing, "report": report}
    return Prepared.model_construct(**kept)


def test_a_training_keeps_what_each_of_its_budgets_is_worth_and_costs(
    calibrated: tuple[Checkpoint, Calibration], job: Job, trained: dict[str, Checkpoint]
) -> None:
    checkpoint, calibration = calibrated
    assert load_calibration(Path(checkpoint.folder)) == calibration
    assert (calibration.checkpoint, calibration.dense) == (checkpoint.sha256, trained["dense"].sha256)
    assert [(each.density, each.num_selected) for each in calibration.points] == [(0.25, 3), (0.5, 5)]
    for each in calibration.points:
        assert each.loss.low <= each.loss.value <= each.loss.high
        assert each.loss.value == pytest.approx(1 - each.task_metric / calibration.dense_metric)
        assert 0 < each.cost.latency_p50_ms.low <= each.cost.latency_p90_ms.high
        assert each.cost.peak_memory_bytes.value > 50e6  # a process with torch in it
    assert calibration.conditions.num_steps == 80
    assert calibration.conditions.num_timings == 40


def test_mlflow_has_the_table_and_its_curves(
    calibrated: tuple[Checkpoint, Calibration], tracker: Tracker
) -> None:
    checkpoint, calibration = calibrated
    metrics = tracker.get_run(checkpoint.run_id).data.metrics
    assert metrics["budget/auroc"] == pytest.approx(calibration.points[-1].task_metric)
    assert metrics["budget/loss"] == pytest.approx(calibration.points[-1].loss.value)


def test_a_challenger_is_measured_beside_the_dense_model_of_what_it_challenges(
    calibrated: tuple[Checkpoint, Calibration], job: Job, pump: Windows, trained: dict[str, Checkpoint]
) -> None:
    champion, known = calibrated
    job.once("train", {"of": "the dense model"}, Checkpoint, lambda: trained["dense"])
    with job.tracker.run("challenger", "training") as run_id:
        challenger = trained["selector"].model_copy(update={"run_id": run_id})
    measure_budgets(job, prepared_of(pump), challenger, champion)
    found = load_calibration(Path(challenger.folder))
    assert (found.checkpoint, found.dense) == (challenger.sha256, known.dense)
    assert found.dense_cost == known.dense_cost  # of one shape: nothing is timed twice
    cost = cost_at_target(job, challenger, trained["dense"])
    at_target = next(each for each in found.points if each.density == job.plan.target_density)
    assert cost.candidate.latency_quantile(0.5) == pytest.approx(at_target.cost.latency_p50_ms.value)
    [repaid] = job.tracker.find_runs({"kind": "payback", "checkpoint": challenger.sha256})
    assert "pay" in repaid.data.tags["answer"]


def test_a_dense_model_and_one_that_was_never_calibrated_have_no_dense_model_beside_them(
    job: Job, trained: dict[str, Checkpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert dense_beside(job, trained["dense"]) is None
    assert not caplog.records
    assert dense_beside(job, trained["sparse"].model_copy(update={"folder": str(tmp_path)})) is None
    assert "budgets are not measured" in caplog.text
