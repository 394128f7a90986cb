"""What gates look at is measured again when it is old or was measured elsewhere, and only then."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines import judging, second_look, serving_check
from pipelines.checkpoint import Checkpoint
from pipelines.clock import now
from pipelines.cost import CostComparison, Timings
from pipelines.data.spec import load_spec
from pipelines.edge.measurement import EdgeTimings
from pipelines.job import Job
from pipelines.serving_check import ServingCheck
from pipelines.settings import load_settings
from tests.tiny_rollout import write_dataset, write_policy
from validation.policy import load_policy
from validation.statistics import Interval

LAST_YEAR = "2020-01-01T00:00:00+00:00"
MODEL = Checkpoint.model_construct(folder="m", sha256="a" * 64, seed=0)
DENSE = Checkpoint.model_construct(folder="d", sha256="b" * 64)
BUNDLE: Any = SimpleNamespace(folder="b", manifest_sha256="m")


@dataclass(frozen=True)
class Data:
    """What is looked at of a snapshot, and of prepared data."""

    content_hash: str = "s"

    @property
    def snapshot(self) -> "Data":
        return self


PREPARED: Any = Data()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job without stores: only its steps are remembered."""
    spec, policy = load_spec(write_dataset(tmp_path)), load_policy(write_policy(tmp_path))
    nothing: Any = None
    settings = replace(load_settings({"DANKAI_HOME": str(tmp_path)}), threads=1)
    return Job(settings, spec, policy, nothing, nothing, lambda *_: None)


class Measurements:
    """Stand in for what is measured; counts how often, and says when and how well as it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.measured_at = now()
        self.repeats = 0
        self.failure = ""

    def cost(self, *_: object, repeats: int, **__: object) -> CostComparison:
        self.count, self.repeats = self.count + 1, repeats
        timings = Timings(
            subject="x", num_steps=1, density=None, latency_ms=(1.0,), memory_bytes=(1.0,), device="cpu",
            threads=1,
        )  # fmt: skip
        one = Interval(value=1, low=1, high=1, n=1)
        ratios = dict.fromkeys(("latency_p50_ratio", "latency_p99_ratio", "peak_memory_ratio"), one)
        about = {"candidate": timings, "dense": timings, "measured_at": self.measured_at}
        return CostComparison(num_steps=1, **about, **ratios)

    def edge(self, folder: Path, key: object, repeats: int, threads: int) -> EdgeTimings:
        self.count, self.repeats = self.count + 1, repeats
        failed = EdgeTimings.failed(threads, self.failure)
        return failed.model_copy(update={"measured_at": self.measured_at})

    def serving(self, *_: object, num_requests: int, **__: object) -> ServingCheck:
        self.count, self.repeats = self.count + 1, num_requests
        return ServingCheck(
            num_requests=num_requests,
            num_windows=num_requests,
            usable=num_requests - bool(self.failure),
            errors=(0.0,),
            latency_ms=(1.0,),
            load_ms=1.0,
            failure=self.failure,
            measured_at=self.measured_at,
        )


Ask = Callable[[Job], object]
ASKS: dict[str, Ask] = {
    "cost": lambda job: judging.measure_costs(job, MODEL, DENSE, (1,)),
    "edge": lambda job: judging.measure_edge(job, BUNDLE),
    "serving": lambda job: serving_check.serving_kpis(job, PREPARED, MODEL, "test"),
}


@pytest.fixture(params=ASKS)
def step(request: pytest.FixtureRequest) -> Ask:
    return ASKS[request.param]


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> Measurements:
    made, key = Measurements(), Ed25519PrivateKey.generate()
    monkeypatch.setattr(judging, "compare_cost", made.cost)
    monkeypatch.setattr(judging, "measure", made.edge)
    monkeypatch.setattr(serving_check, "check_serving", made.serving)
    for module in (judging, serving_check):
        monkeypatch.setattr(module, "load_key", lambda _: key)
    monkeypatch.setattr(Job, "windows", lambda *_: None)
    return made


def test_timings_are_remembered_until_they_are_too_old(
    step: Ask, job: Job, measurements: Measurements
) -> None:
    measurements.measured_at = LAST_YEAR
    step(job)
    once = measurements.count
    measurements.measured_at = now()
    step(job)
    step(job)
    assert measurements.count == 2 * once


def test_timings_of_another_machine_are_not_ours(
    step: Ask, job: Job, measurements: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(job)
    once = measurements.count
    for module in (judging, serving_check):
        monkeypatch.setattr(module, "machine", lambda: {"cpu": "a faster one"})
    step(job)
    assert measurements.count == 2 * once


@pytest.mark.parametrize("name", ["edge", "serving"])
def test_a_failure_is_looked_at_again(name: str, job: Job, measurements: Measurements) -> None:
    measurements.failure = "killed"
    ASKS[name](job)
    once = measurements.count
    measurements.failure = ""
    ASKS[name](job)
    ASKS[name](job)
    assert measurements.count == 2 * once


def test_a_new_price_is_no_reason_to_time_again(job: Job, measurements: Measurements) -> None:
    """Or every change of prices would be new evidence."""
    ASKS["cost"](job)
    dearer = job.policy.cost.model_copy(update={"price_per_cpu_hour": 99.0})
    ASKS["cost"](replace(job, policy=job.policy.model_copy(update={"cost": dearer})))
    assert measurements.count == 1


def test_there_are_as_many_timings_as_the_gated_quantiles_take(job: Job, measurements: Measurements) -> None:
    """However few processes the policy asks for: here two."""
    ASKS["cost"](job)
    assert 2 * measurements.repeats >= 368
    ASKS["edge"](job)
    assert 2 * measurements.repeats >= 400
    ASKS["serving"](job)
    assert measurements.repeats == 60


def test_a_second_look_measures_on_its_own_part(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention mass and serving check too: on the newest month, not on the part of the first look."""
    parts: list[str] = []
    kpi: Any = SimpleNamespace(name="x")
    monkeypatch.setattr(judging, "_measure_recall", lambda *rest: parts.append(rest[3]) or kpi)
    monkeypatch.setattr(judging, "serving_kpis", lambda *rest: parts.append(rest[3]) or [])
    monkeypatch.setattr(judging, "canary_kpis", lambda *_, **__: [])
    monkeypatch.setattr(judging, "current_state", lambda *_: None)
    monkeypatch.setattr(judging, "opponent", lambda *_: "")
    monkeypatch.setattr(judging, "cost_kpis", lambda *_: [])
    monkeypatch.setattr(judging, "tracked_payback", lambda *_: None)
    monkeypatch.setattr(judging, "seed_spread_kpi", lambda *_: kpi)
    monkeypatch.setattr(second_look, "score", lambda *_: kpi)
    monkeypatch.setattr(second_look, "measure_costs", lambda *_: [None])
    for seeds in ((), (MODEL,)):  # the pilot's case and the training's
        lineup = second_look.Lineup.model_construct(candidate=MODEL, dense=DENSE, seeds=seeds)
        case = second_look.Case.model_construct(lineup=lineup)
        second_look._measured(job, PREPARED, case, "2024-06")
    assert parts == ["2024-06"] * 4
