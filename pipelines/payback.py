"""Does the change pay? Measured seconds and bytes times the policy's prices, and what the answer hangs on.

Running costs: the mean seconds of a request, times cores (or one GPU), times the price of their hour, times
requests a day. Once: the engineering of the change, less the devices that it makes unnecessary. "It does not
pay back" is an answer: infinitely many days.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cost import CostComparison, Timings
from pipelines.job import Job
from validation.policy import CostPolicy
from validation.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
_DAY = 86_400
_VARIED = ("price_per_hour", "requests_per_day", "engineering_cost", "price_per_device", "seconds_saved")
KIND, FILE, PLOT = "payback", "payback.json", "payback.svg"


class Sensitivity(Record):
    """Days until payback when one input is half and twice as large."""

    varied: str
    half: float
    twice: float


class Payback(Record):
    """When the measured saving has paid for the change. Money in `currency`; days may be infinite."""

    saved_seconds_per_request: float
    saved_per_day: float
    devices_saved: int
    upfront: float
    """Engineering cost, less the price of the devices saved."""
    days: float
    low: float
    high: float
    confidence: float
    currency: str
    sensitivity: tuple[Sensitivity, ...] = ()

    def sentence(self) -> str:
        """The answer in words and numbers."""
        money = (
            f"it saves {self.saved_seconds_per_request * 1e3:,.3g} ms a request, "
            f"{_money(self.saved_per_day)} {self.currency} a day and {self.devices_saved} devices, "
            f"for {_money(self.upfront)} {self.currency} at the start"
        )
        if math.isinf(self.days):
            return f"does not pay back: {money}"
        at = f"[{_days(self.low)}, {_days(self.high)}] at {100 * self.confidence:.4g}%"
        return f"pays back in {_days(self.days)} days {at}: {money}"


def _money(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _days(number: float) -> str:
    return "never" if math.isinf(number) else f"{number:,.3g}" if number < 1e4 else f"{number:,.0f}"


class _Inputs(Record):
    """Everything that the answer depends on; times in seconds, memory in bytes."""

    ours: float
    theirs: float
    our_bytes: float
    their_bytes: float
    price_per_hour: float
    """Of all that one request keeps busy: one GPU, or the cores that its threads run on."""
    requests_per_day: float
    engineering_cost: float
    price_per_device: float
    device_memory_bytes: float

    def saved_per_day(self) -> float:
        return (self.theirs - self.ours) * self.price_per_hour / 3600 * self.requests_per_day

    def devices_saved(self) -> int:
        return self._devices(self.theirs, self.their_bytes) - self._devices(self.ours, self.our_bytes)

    def _devices(self, seconds: float, memory: float) -> int:
        busy = max(1, math.ceil(self.requests_per_day * seconds / _DAY - 1e-9))
        return busy * max(1, math.ceil(memory / self.device_memory_bytes))

    def upfront(self) -> float:
        return self.engineering_cost - self.devices_saved() * self.price_per_device

    def days(self) -> float:
        saved, upfront = self.saved_per_day(), self.upfront()
        if saved > 0:
            return max(0.0, upfront) / saved
        return 0.0 if saved == 0 and upfront <= 0 else math.inf

    def vary(self, name: str, factor: float) -> "_Inputs":
        if name == "seconds_saved":
            return self.model_copy(update={"ours": self.theirs - factor * (self.theirs - self.ours)})
        return self.model_copy(update={name: factor * getattr(self, name)})


def payback(
    comparison: CostComparison,
    prices: CostPolicy,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Payback:
    """Days until what is saved has paid for the change; the interval resamples the timings of both sides."""
    inputs = _inputs(comparison, prices)
    days = _resampled_days(inputs, comparison, num_resamples, seed)
    tail = (1 - confidence) / 2
    return Payback(
        saved_seconds_per_request=inputs.theirs - inputs.ours,
        saved_per_day=inputs.saved_per_day(),
        devices_saved=inputs.devices_saved(),
        upfront=inputs.upfront(),
        days=inputs.days(),
        low=min(inputs.days(), float(np.quantile(days, tail, method="lower"))),
        high=max(inputs.days(), float(np.quantile(days, 1 - tail, method="higher"))),
        confidence=confidence,
        currency=prices.currency,
        sensitivity=tuple(
            Sensitivity(varied=name, half=inputs.vary(name, 0.5).days(), twice=inputs.vary(name, 2.0).days())
            for name in _VARIED
        ),
    )


def _inputs(comparison: CostComparison, prices: CostPolicy) -> _Inputs:
    ours, theirs = comparison.candidate, comparison.dense
    is_gpu = theirs.device == "cuda"
    per_hour = prices.price_per_gpu_hour if is_gpu else prices.price_per_cpu_hour * theirs.threads
    return _Inputs(
        ours=_mean_seconds(ours),
        theirs=_mean_seconds(theirs),
        our_bytes=max(ours.memory_bytes),
        their_bytes=max(theirs.memory_bytes),
        price_per_hour=per_hour,
        requests_per_day=prices.requests_per_day,
        engineering_cost=prices.engineering_cost,
        price_per_device=prices.price_per_device,
        device_memory_bytes=prices.device_memory_bytes,
    )


def _mean_seconds(timings: Timings) -> float:
    """The mean, not the median: what is paid for is the sum."""
    return float(np.mean(timings.latency_ms)) / 1e3


def _resampled_days(inputs: _Inputs, comparison: CostComparison, num_resamples: int, seed: int) -> Floats:
    generator = np.random.default_rng(seed)

    def means(timings: Timings) -> Floats:
        samples = np.array(timings.latency_ms)
        return generator.choice(samples, size=(num_resamples, len(samples))).mean(axis=1) / 1e3

    pairs = zip(means(comparison.candidate), means(comparison.dense), strict=True)
    return np.array(
        [inputs.model_copy(update={"ours": ours, "theirs": theirs}).days() for ours, theirs in pairs]
    )


def tracked_payback(job: Job, comparison: CostComparison, checkpoint: str) -> Payback:
    """The payback of a candidate, with its sensitivity plot kept in MLflow beside its evaluations."""
    policy = job.policy

    def compute() -> Payback:
        how = {"confidence": policy.confidence, "num_resamples": policy.num_resamples}
        repaid = payback(comparison, policy.cost, **how)
        tags = {"dataset": job.spec.name, "checkpoint": checkpoint}
        with job.tracker.run(f"{job.spec.name} payback", KIND, tags, job.parent_run) as run_id:
            job.tracker.log_dict(run_id, repaid.model_dump(mode="json"), FILE)
            job.tracker.log_figure(run_id, sensitivity_plot(comparison, policy.cost, repaid), PLOT)
            job.tracker.log_tags(run_id, {"answer": repaid.sentence()})
        return repaid

    inputs = {"comparison": comparison, "prices": policy.cost, "checkpoint": checkpoint}
    inputs |= {"confidence": policy.confidence, "resamples": policy.num_resamples}
    return job.once("payback", inputs, Payback, compute)


def sensitivity_plot(comparison: CostComparison, prices: CostPolicy, repaid: Payback) -> "Figure":
    """Days by requests a day, with the interval; and by each input halved and doubled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_requests(left, comparison, prices, repaid)
    _plot_inputs(right, repaid)
    figure.suptitle("Does it pay back? " + repaid.sentence().split(":")[0])
    return figure


def _plot_requests(axes: "Axes", comparison: CostComparison, prices: CostPolicy, repaid: Payback) -> None:
    requests = max(prices.requests_per_day, 1.0) * np.geomspace(0.01, 100, 41)
    curves = [
        payback(comparison, prices.model_copy(update={"requests_per_day": number}), num_resamples=100)
        for number in requests
    ]
    finite: dict[str, Any] = {
        name: [value if math.isfinite(value := getattr(each, name)) else math.nan for each in curves]
        for name in ("days", "low", "high")
    }
    axes.plot(requests, finite["days"])
    axes.fill_between(requests, finite["low"], finite["high"], alpha=0.3)
    axes.axvline(prices.requests_per_day, linestyle=":", color="black")
    axes.set(xscale="log", xlabel="requests a day", ylabel="days until it has paid")
    if any(value > 0 for value in finite["days"]):
        axes.set_yscale("log")
    else:
        axes.text(0.5, 0.5, "does not pay back\nat any of these", transform=axes.transAxes, ha="center")


def _plot_inputs(axes: "Axes", repaid: Payback) -> None:
    """A bar from half to twice of each input; an end that never pays back is left open at the right."""
    for row, each in enumerate(repaid.sensitivity):
        known = [days for days in (each.half, each.twice, repaid.days) if math.isfinite(days) and days > 0]
        if known:
            axes.barh(row, max(known) - min(known) or 0.01 * max(known), left=min(known))
        if len(known) < 3:
            axes.annotate("never", (1, row), xycoords=("axes fraction", "data"), ha="right", va="center")
    if math.isfinite(repaid.days) and repaid.days > 0:
        axes.axvline(repaid.days, linestyle=":", color="black")
        axes.set_xscale("log")
    names: Mapping[str, str] = {name: name.replace("_", " ") for name in _VARIED}
    axes.set_yticks(range(len(repaid.sensitivity)), [names[each.varied] for each in repaid.sensitivity])
    axes.set(xlabel="days, each input from half to twice")
