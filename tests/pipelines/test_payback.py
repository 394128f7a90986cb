"""What a saving is worth, by hand; and that a change that never pays is told so and stopped."""

import math
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipelines.cost import CostComparison, Timings
from pipelines.data.spec import load_spec
from pipelines.evaluation import cost_kpis
from pipelines.job import Job
from pipelines.payback import KIND, PLOT, Payback, payback, tracked_payback
from pipelines.registry import Tracker
from pipelines.release_log import ReleaseLog
from pipelines.settings import Settings
from tests.tiny_rollout import write_dataset, write_policy
from validation.evidence import Evidence
from validation.gates import Outcome, StagePolicy, judge
from validation.policy import CostPolicy, load_policy
from validation.statistics import Interval
from validation.thresholds import Threshold

GIB = 2.0**30
PRICES = CostPolicy(
    currency="USD",
    price_per_gpu_hour=3.6,
    price_per_cpu_hour=0.36,
    price_per_device=0,
    device_memory_bytes=2 * GIB,
    requests_per_day=1_000_000,
    engineering_cost=500,
)


def comparison(
    dense_ms: float, ours_ms: float, device: str = "cpu", ours_bytes: float = GIB, spread: float = 0.0
) -> CostComparison:
    def timings(ms: float, memory: float) -> Timings:
        return Timings(
            subject="x",
            num_steps=1,
            density=None,
            latency_ms=(ms - spread, ms, ms + spread) * 10,
            memory_bytes=(memory,),
            device=device,
            threads=2,
        )

    ratio = Interval(value=ours_ms / dense_ms, low=0, high=9, n=9, confidence=0.95)
    return CostComparison(
        num_steps=1,
        candidate=timings(ours_ms, ours_bytes),
        dense=timings(dense_ms, GIB),
        latency_p50_ratio=ratio,
        latency_p99_ratio=ratio,
        peak_memory_ratio=ratio,
    )


def priced(**changes: Any) -> CostPolicy:
    return PRICES.model_copy(update=changes)


def test_payback_by_hand() -> None:
    """A second of two cores at 0.36 an hour is 0.0002; half of it saved, a million times a day: 100."""
    repaid = payback(comparison(1000, 500), PRICES)
    assert repaid.saved_seconds_per_request == pytest.approx(0.5)
    assert repaid.saved_per_day == pytest.approx(100.0)
    assert (repaid.low, repaid.days, repaid.high) == pytest.approx((5, 5, 5))
    assert repaid.sentence().startswith(
        "pays back in 5 days [5, 5] at 95%: it saves 500 ms a request, 100 USD a day"
    )


def test_the_interval_is_that_of_the_timings() -> None:
    repaid = payback(comparison(1000, 500, spread=200), PRICES)
    assert repaid.low < 5 < repaid.high < 8
    wider = payback(comparison(1000, 500, spread=400), PRICES)
    assert wider.high - wider.low > repaid.high - repaid.low


def test_an_hour_of_a_gpu_is_paid_once_whatever_the_threads() -> None:
    assert payback(comparison(1000, 500, "cuda"), PRICES).saved_per_day == pytest.approx(500.0)


def test_devices_that_are_not_needed_are_money_saved_at_the_start() -> None:
    """A million requests of a second keep 12 devices busy, of half a second 6."""
    repaid = payback(comparison(1000, 500), priced(price_per_device=50))
    assert repaid.devices_saved == 6
    assert repaid.upfront == pytest.approx(200)
    assert repaid.days == pytest.approx(2)
    assert payback(comparison(1000, 500), priced(price_per_device=100)).days == 0


def test_a_model_that_does_not_fit_a_device_takes_several() -> None:
    few = priced(price_per_device=100, requests_per_day=1000)
    repaid = payback(comparison(1000, 500, ours_bytes=3 * GIB), few)
    assert repaid.devices_saved == -1
    assert repaid.upfront == pytest.approx(600)


@pytest.mark.parametrize("ours_ms", [1000, 1700])
def test_what_saves_nothing_does_not_pay_back_and_says_so(ours_ms: float) -> None:
    repaid = payback(comparison(1000, ours_ms), PRICES)
    assert repaid.days == repaid.high == math.inf
    assert repaid.saved_per_day <= 0
    assert repaid.sentence().startswith("does not pay back")


def asked(repaid: Payback) -> Outcome:
    """The answer of a gate that asks for payback within a year."""
    policy = StagePolicy(
        stage="pilot",
        thresholds=(Threshold(kpi="payback_days", at_most=365),),
        min_windows=1,
        min_timings=1,
        min_processes=1,
    )
    evidence = Evidence(checkpoint="c", snapshot="s", task_metric="auroc")
    return judge(cost_kpis(comparison(1000, 500), repaid, "c", "s"), policy, evidence).outcome


def test_the_answer_gates() -> None:
    assert asked(payback(comparison(1000, 500), PRICES)) is Outcome.PASS
    assert asked(payback(comparison(1000, 1700), PRICES)) is Outcome.FAIL
    assert asked(payback(comparison(1000, 990, spread=300), PRICES)) is Outcome.HOLD
    assert asked(payback(comparison(1000, 500), priced(engineering_cost=50_000))) is Outcome.FAIL


def test_what_the_answer_hangs_on() -> None:
    repaid = payback(comparison(1000, 500), PRICES)
    found = {each.varied: (each.half, each.twice) for each in repaid.sensitivity}
    assert found["requests_per_day"] == pytest.approx((10, 2.5))
    assert found["price_per_hour"] == pytest.approx((10, 2.5))
    assert found["seconds_saved"] == pytest.approx((10, 2.5))
    assert found["engineering_cost"] == pytest.approx((2.5, 10))
    assert found["price_per_device"] == pytest.approx((5, 5))


@pytest.mark.parametrize("ours_ms", [500, 1700])
def test_the_plot_is_kept_in_mlflow_once(
    ours_ms: float, tmp_path: Path, store: Settings, tracker: Tracker, request: pytest.FixtureRequest
) -> None:
    name = f"payback_{zlib.crc32(request.node.name.encode())}"
    spec, policy = load_spec(write_dataset(tmp_path, name)), load_policy(write_policy(tmp_path))
    job = Job(store, spec, policy, tracker, ReleaseLog.open(store), lambda *_: None)
    first = tracked_payback(job, comparison(1000, ours_ms), "weights")
    assert tracked_payback(job, comparison(1000, ours_ms), "weights") == first
    (run,) = tracker.find_runs({"kind": KIND, "dataset": name})
    assert run.data.tags["answer"] == first.sentence()
    plot = Path(tracker._client.download_artifacts(run.info.run_id, PLOT, str(tmp_path)))
    assert plot.read_text().rstrip().endswith("</svg>")
