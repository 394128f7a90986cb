"""Rings: a bundle goes to one device, to a tenth of them, to all; between them the edge gate is asked.

The gate is the one of the stages (validation.gates) with the policy's own bounds of what devices can
measure. Its evidence is what the ring's devices report of this offer, of windows since the bundle came to
them; no device's clock is asked. What a report cannot be (numbers that contradict each other) sets the device
aside; one that lies consistently cannot be told from one that does well, and is outvoted in the next ring.

When a ring may pass is settled by counts alone, before anyone looks at values: each device answers so many
windows, and together they are as many as the gate needs. Until then a ring waits, as long as what it lacks
comes in; then it is judged once. It fails at the first look that shows a failure.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from pipelines.clock import now
from pipelines.cost import worst_case
from pipelines.edge.metrics import MAX_LATENCIES, Limits
from pipelines.edge.offers import Offer, Package, make_offer, read_offer
from pipelines.edge.stores import Store, read
from validation.evidence import Evidence
from validation.gates import Outcome, StagePolicy, Verdict, judge
from validation.kpis import KINDS, Kpi, kpi
from validation.policy import Policy
from validation.record import Record
from validation.samples import quantile_interval
from validation.statistics import Interval

MEASURED = ("error_rate", "latency_p99_ms", "peak_memory_bytes", "bundle_bytes")
_MAX_REPORT_BYTES = 1 << 20
_GONE = 100
"""Unanswered windows that stand for a device on which the bundle did not load or was taken back."""


class Ring(Record):
    """What one ring said."""

    devices: tuple[str, ...]
    verdict: Verdict
    windows: int
    """That each device was asked to answer."""
    silent: tuple[str, ...] = ()
    """Devices that did not."""
    set_aside: dict[str, str] = Field(default_factory=dict)
    """Devices whose reports cannot be true, and why."""
    refused: dict[str, str] = Field(default_factory=dict)
    """Devices on which the bundle did not stay, and why."""


class RolloutReport(Record):
    """How far a bundle came, and what every device runs in the end."""

    bundle: str
    last_green: str
    outcome: Outcome
    rings: tuple[Ring, ...]
    ended_on: dict[str, str]
    """Bundle by device, as it last reported; "" for none."""


class Subject(NamedTuple):
    """The bundle on its way: where it lies, and the digests its KPIs have to be about."""

    package: Package
    checkpoint: str
    snapshot: str

    @classmethod
    def of(cls, package: Package, manifest: Mapping[str, Any]) -> "Subject":
        return cls(package, manifest["made_from"]["checkpoint"], manifest["made_from"]["snapshot"])


class Patience(NamedTuple):
    """How long a ring may bring nothing new, how long it may take in all, and how often it is looked at."""

    quiet_seconds: float
    most_seconds: float
    poll_seconds: float = 5.0
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, policy: Policy) -> "Patience":
        return cls(policy.rings.quiet_minutes * 60, policy.rings.most_hours * 3600)


class _Wait:
    """For a count to grow, as long as patience lasts."""

    def __init__(self, patience: Patience) -> None:
        self._patience, self._count = patience, -1
        self._began = self._grew = time.monotonic()

    def is_over(self, count: int) -> bool:
        """Sleep a while, unless nothing new came for too long, or it took too long in all."""
        now = time.monotonic()
        if count > self._count:
            self._count, self._grew = count, now
        quiet, most, poll_seconds, sleep = self._patience
        if now - self._grew > quiet or now - self._began > most:
            return True
        sleep(poll_seconds)
        return False


def roll_out(
    store: Store,
    subject: Subject,
    devices: Sequence[str],
    policy: Policy,
    key: Ed25519PrivateKey,
    patience: Patience,
    tell: Callable[[str], None] = lambda _: None,
) -> RolloutReport:
    """Take a bundle to all devices, in the order given, or back from those that have it.

    Raises StoreError where the store fails.
    """
    before = read_offer(store, key.public_key())
    last_green = before.settled if before else None
    sequence, limits = before.sequence if before else 0, device_limits(policy)
    rings: list[Ring] = []
    for size in ring_sizes(len(devices), policy.rings.shares):
        ring = devices[:size]
        sequence += 1
        offer = make_offer(store, Offer(sequence, subject.package, tuple(ring), last_green, limits), key)
        rings.append(_judged(store, subject, offer, ring, policy, patience))
        tell(f"ring of {size}: {rings[-1].verdict.outcome}" + _why(rings[-1]))
        if rings[-1].verdict.outcome is not Outcome.PASS:
            break
    passed = rings[-1].verdict.outcome is Outcome.PASS
    final = subject.package if passed else last_green
    ended_on = _settle(store, final, sequence + 1, limits, devices, key, patience)
    return RolloutReport(
        bundle=subject.package.bundle,
        last_green=last_green.bundle if last_green else "",
        outcome=rings[-1].verdict.outcome,
        rings=tuple(rings),
        ended_on=ended_on,
    )


def ring_sizes(num_devices: int, shares: Sequence[float]) -> list[int]:
    """One device at least; each larger than the one before."""
    return sorted({max(1, math.ceil(share * num_devices)) for share in shares})


def ring_order(store: Store, devices: Sequence[str], bundle: str, key: Ed25519PublicKey) -> list[str]:
    """Another order for every bundle, so that no device is always the first; those not heard well come last.

    Heard well is who followed the newest offer and left a report of it that can be true. Who then falls
    silent in a small ring, where nobody may, had spoken before it got the bundle. Raises StoreError.
    """
    before = read_offer(store, key)
    heard = _heard(store, before.sequence if before else 0, devices).reports
    place = {name: hashlib.sha256(f"{bundle} {name}".encode()).hexdigest() for name in devices}
    return sorted(devices, key=lambda name: (name not in heard, place[name]))


def max_silent(policy: Policy, num_devices: int) -> int:
    """Devices of a ring that may be silent or set aside: of fewer than ten, by the shipped policy, none."""
    return math.floor(policy.rings.max_silent * num_devices + 1e-9)


def windows_of_each(policy: Policy, num_devices: int) -> int:
    """That a device of a ring has to answer, so that those who have to speak give the gate what it needs."""
    gate = ring_policy(policy)
    needed = max(gate.needed(each.kpi) for each in gate.thresholds if KINDS[each.kpi].counted == "timings")
    share = math.ceil(needed / max(1, num_devices - max_silent(policy, num_devices)))
    return min(MAX_LATENCIES, max(policy.rings.min_windows, share))


def ring_policy(policy: Policy) -> StagePolicy:
    """The edge stage's bounds of what devices measure."""
    stage = policy.stage("edge")
    asked = tuple(each for each in stage.serving if each.kpi in MEASURED)
    return stage.model_copy(update={"thresholds": asked, "serving": ()})


def device_limits(policy: Policy) -> Limits:
    """When a device goes back by itself: the edge stage's `rollback` rules, and its bound on memory."""
    rules = {rule.kpi: rule.at_most for rule in policy.rollback("edge").rules if rule.at_most is not None}
    gate = {each.kpi: each.at_most for each in policy.stage("edge").serving if each.at_most is not None}
    bounds = {**{name: value for name, value in gate.items() if name == "peak_memory_bytes"}, **rules}
    return Limits(**{name: float(bounds[name]) for name in Limits._fields if name in bounds})


def _judged(
    store: Store, subject: Subject, offer: Offer, ring: Sequence[str], policy: Policy, patience: Patience
) -> Ring:
    """The ring's answer: of all who have to tell, or what there is when patience ends."""
    measured_at, wait = now(), _Wait(patience)
    while True:
        heard = _heard(store, offer.sequence, ring)
        found = _verdict(heard, subject, ring, policy, measured_at)
        is_complete = not found.silent and len(found.set_aside) <= max_silent(policy, len(ring))
        if found.verdict.outcome is Outcome.FAIL or is_complete or wait.is_over(_told(heard, found)):
            return found


def _told(heard: "_Heard", ring: Ring) -> int:
    """Windows of those that were asked for."""
    return sum(min(each["windows"], ring.windows) for each in heard.reports.values())


class _Heard(NamedTuple):
    reports: dict[str, dict[str, Any]]
    set_aside: dict[str, str]


def _heard(store: Store, sequence: int, ring: Sequence[str]) -> _Heard:
    """What devices report of the offer with that number."""
    reports, set_aside = {}, {}
    for name in ring:
        content = read(store, f"devices/{name}/report.json", _MAX_REPORT_BYTES)
        if content is None:
            continue
        report = _parsed(content)
        if fault := fault_of(report, name):
            set_aside[name] = fault
        elif report["sequence"] == sequence:
            reports[name] = report
    return _Heard(reports, set_aside)


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        report = json.loads(content)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def fault_of(report: Mapping[str, Any], name: str) -> str:
    """Why a report cannot be true, or ""."""
    try:
        windows, failed, lines = (_count(report[key]) for key in ("windows", "failed", "lines"))
        latencies = [float(ms) for ms in report["latency_ms"]]
        memory = [_count(size) for size in report["memory_bytes"]]
        sequence, bundle, scored = _count(report["sequence"]), report["bundle"], _count(report["scored"])
        refused = {str(key): str(value) for key, value in report["refused"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"not a report ({type(error).__name__})"
    if report.get("device") != name:
        return "names another device"
    if failed > windows or (windows and not lines):
        return f"{failed} of {windows} windows failed, of {lines} lines"
    if len(latencies) != min(windows - failed, MAX_LATENCIES):
        return f"{len(latencies)} latencies of {windows - failed} answers"
    if not all(math.isfinite(ms) and ms > 0 for ms in latencies):
        return "a latency that is no time"
    if any(size < 1 << 20 for size in memory) or (scored and not windows - failed):
        return "memory or scores that cannot be"
    return (
        "" if isinstance(bundle, str) and sequence >= 0 and bundle not in refused else "runs what it refused"
    )


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def _verdict(heard: _Heard, subject: Subject, ring: Sequence[str], policy: Policy, measured_at: str) -> Ring:
    bundle, asked = subject.package.bundle, windows_of_each(policy, len(ring))
    refused = {
        name: report["refused"][bundle]
        for name, report in heard.reports.items()
        if bundle in report["refused"]
    }
    running = {name: report for name, report in heard.reports.items() if report["bundle"] == bundle}
    told = {name for name, report in running.items() if report["windows"] >= asked} | {*refused}
    silent = tuple(name for name in ring if name not in told | {*heard.set_aside})
    evidence = Evidence(
        checkpoint=subject.checkpoint,
        snapshot=subject.snapshot,
        task_metric="auroc",  # none is asked for
        measured_at=measured_at,
        judged_at=now(),
    )
    kpis = _kpis(list(running.values()), len(refused), subject, policy, measured_at)
    verdict = judge(kpis, ring_policy(policy), evidence)
    too_few = len(silent) + len(heard.set_aside) > max_silent(policy, len(ring))
    if too_few and verdict.outcome is Outcome.PASS:
        verdict = verdict.model_copy(update={"outcome": Outcome.HOLD})
    return Ring(
        devices=tuple(ring),
        verdict=verdict,
        windows=asked,
        silent=silent,
        set_aside=heard.set_aside,
        refused=refused,
    )


def _kpis(
    reports: Sequence[Mapping[str, Any]], num_refused: int, subject: Subject, policy: Policy, measured_at: str
) -> list[Kpi]:
    about: dict[str, Any] = {"checkpoint": subject.checkpoint, "snapshot": subject.snapshot}
    about["measured_at"] = measured_at
    asked = sum(report["windows"] for report in reports) + _GONE * num_refused
    failed = sum(report["failed"] for report in reports) + _GONE * num_refused
    latencies = np.array([ms for report in reports for ms in report["latency_ms"]])
    memory = np.array([size for report in reports for size in report["memory_bytes"]], np.float64)
    kpis = [kpi("bundle_bytes", float(subject.package.size_bytes), **about)]
    if asked:
        share = failed / asked
        kpis.append(kpi("error_rate", Interval(value=share, low=share, high=share, n=asked), **about))
    if len(latencies):
        measured = quantile_interval(latencies, 0.99, confidence=policy.confidence)
        kpis.append(kpi("latency_p99_ms", measured, **about))
    if len(memory):
        kpis.append(kpi("peak_memory_bytes", worst_case(memory), **about))
    return kpis


def _settle(
    store: Store,
    final: Package | None,
    sequence: int,
    limits: Limits,
    devices: Sequence[str],
    key: Ed25519PrivateKey,
    patience: Patience,
) -> dict[str, str]:
    """Offer `final` to every device; what each reports to run, once all do or patience ends."""
    if final is not None:
        make_offer(store, Offer(sequence, final, None, None, limits), key)
    wait = _Wait(patience)
    while True:
        runs = {name: _bundle_of(store, name, sequence) for name in devices}
        settled = sum(final is None or bundle == final.bundle for bundle in runs.values())
        if settled == len(devices) or wait.is_over(settled):
            return runs


def _bundle_of(store: Store, name: str, sequence: int) -> str:
    content = read(store, f"devices/{name}/report.json", _MAX_REPORT_BYTES)
    report = _parsed(content) if content else {}
    is_new = report.get("sequence") == sequence
    return str(report.get("bundle", "")) if is_new else ""


def _why(ring: Ring) -> str:
    said = [*ring.verdict.reasons]
    said += [f"{name} refused it: {reason}" for name, reason in list(ring.refused.items())[:1]]
    if ring.silent:
        said.append(f"{len(ring.silent)} have not answered {ring.windows} windows")
    if ring.set_aside:
        said.append(f"{len(ring.set_aside)} set aside")
    return f" ({'; '.join(said)})" if said else ""
