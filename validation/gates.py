"""The gate: a pure function from measured KPIs and a stage's thresholds to PASS, HOLD or FAIL, with reasons.

A check passes when even the pessimistic end of the interval keeps the bound, fails when even the optimistic
end breaks it, and holds in between. No evidence is never PASS.

How often it errs. Intervals are two-sided at `confidence`, so each end errs with probability
alpha = (1 - confidence) / 2, one-sided: 2.5% at 0.95. A gate passes only when every required check passes,
and a worst-group check only when every group does. So a model that breaks a bound passes only if that very
check errs: with probability alpha at most, however many checks and groups there are, without any correction
(intersection-union test: Berger, Technometrics 24, 1982). To fail, one group is enough, and so the
optimistic ends of groups are those of a band that holds for all at once (validation.simultaneous).

Asking again spends shares of alpha that were fixed in advance and add up to it (Slud and Wei, JASA 77, 1982;
Lan and DeMets, Biometrika 70, 1983), here by look and with the union bound in place of the looks' joint
distribution: so later data need be neither as many as planned nor contain the earlier, and the bootstrap
need not be normal. Intervals that allow any number of looks (validation.betting, for the canary) are wider
at every one of them; a gate is asked a few times, mostly once, and the first look is nearly free here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from validation.causes import Cause, CauseKind, Gap, gap
from validation.evidence import Evidence, staleness, too_old
from validation.kpis import KINDS, Kpi, KpiKind
from validation.record import Record
from validation.samples import samples_needed
from validation.thresholds import ANY_COLUMN, WORST, Sample, Severity, Threshold, bound_of

Stage = Literal["pilot", "training", "edge", "steady"]
Blessing = Literal["quality", "serving"]


class Outcome(StrEnum):
    """The three answers of a gate, worst last."""

    PASS = "PASS"
    HOLD = "HOLD"
    FAIL = "FAIL"


_COMPARED: dict[Outcome, CauseKind] = {
    Outcome.PASS: "keeps",
    Outcome.HOLD: "straddles",
    Outcome.FAIL: "breaks",
}
_SEVERITY_OF_OUTCOME = {Outcome.PASS: 0, Outcome.HOLD: 1, Outcome.FAIL: 2}


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of the outcomes; HOLD when there are none, because nothing was shown."""
    return max(outcomes, key=_SEVERITY_OF_OUTCOME.__getitem__, default=Outcome.HOLD)


class StagePolicy(Sample):
    """What one stage asks, and how much evidence it needs before it answers.

    `thresholds` make the first blessing (quality), `serving` the second (it loads and answers where it will
    serve). `looks` are the shares of the error that the first, second ... time of asking may use.
    `policy` is the digest of the whole policy that this is a part of.
    """

    stage: Stage
    thresholds: tuple[Threshold, ...]
    serving: tuple[Threshold, ...] = ()
    confidence: float = 0.95
    looks: tuple[float, ...] = (1.0,)
    max_age_hours: float | None = None
    policy: str = ""

    @field_validator("thresholds", "serving")
    @classmethod
    def _groups_are_large_enough(
        cls, thresholds: tuple[Threshold, ...], info: ValidationInfo
    ) -> tuple[Threshold, ...]:
        """A group needs at least as many windows as the whole, whatever less its own `min_group` says."""
        fewest = info.data.get("min_windows", 1)
        return tuple(
            each.model_copy(update={"min_group": max(each.min_group, fewest)}) if each.slice else each
            for each in thresholds
        )

    def needed(self, name: str) -> int:
        """As for any sample, and as many timings as an interval of the KPI's quantile takes."""
        quantile = KINDS[name].quantile
        return max(super().needed(name), samples_needed(quantile, self.confidence) if quantile else 1)

    def blessings(self) -> dict[Blessing, tuple[Threshold, ...]]:
        """The thresholds of each blessing that is asked for."""
        asked: dict[Blessing, tuple[Threshold, ...]] = {"quality": self.thresholds}
        if self.serving:
            asked["serving"] = self.serving
        return asked

    def confidence_at(self, look: int) -> float:
        """Two-sided confidence that an interval over windows needs at the given time of asking, from 1."""
        share = self.looks[min(look, len(self.looks)) - 1]
        return 1 - (1 - self.confidence) * share


class Check(Record):
    """One threshold judged on one KPI, with the reason in words and numbers."""

    kpi: str
    slice: str
    threshold: Threshold
    outcome: Outcome
    reason: str
    measured: Kpi | None = None
    blessing: Blessing = "quality"
    cause: Cause | None = Field(default=None, exclude_if=lambda cause: cause is None)
    """The reason apart from any language; None in records of versions that did not keep it."""

    @property
    def severity(self) -> Severity:
        return self.threshold.severity


class Verdict(Record):
    """The answer of one gate: the worst of its required checks, of both blessings."""

    stage: Stage
    outcome: Outcome
    checks: tuple[Check, ...]
    policy_digest: str
    evidence: Evidence

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass: the reasons of the required checks that did not."""
        return tuple(
            check.reason
            for check in self.checks
            if check.severity == "required" and check.outcome is not Outcome.PASS
        )

    def blessing(self, name: Blessing) -> Outcome:
        """The answer of one blessing alone; HOLD where nothing was asked of it."""
        return _decide(check for check in self.checks if check.blessing == name)


def _decide(checks: Iterable[Check]) -> Outcome:
    return worst(check.outcome for check in checks if check.severity == "required")


def judge(kpis: Sequence[Kpi], stage_policy: StagePolicy, evidence: Evidence) -> Verdict:
    """Judge the measured KPIs of one candidate by one stage's thresholds. Pure: same input, same verdict."""
    bench = _Bench(tuple(kpis), stage_policy, evidence)
    blessed = {
        name: [check for threshold in thresholds for check in _checks(name, threshold, bench)]
        for name, thresholds in stage_policy.blessings().items()
    }
    return Verdict(
        stage=stage_policy.stage,
        outcome=worst(_decide(checks) for checks in blessed.values()),
        checks=tuple(check for checks in blessed.values() for check in checks),
        policy_digest=stage_policy.policy or stage_policy.digest(),
        evidence=evidence,
    )


class _Bench(NamedTuple):
    kpis: tuple[Kpi, ...]
    policy: StagePolicy
    evidence: Evidence


class _Finding(NamedTuple):
    outcome: Outcome
    reason: str
    cause: Cause
    measured: Kpi | None = None


def _hold(subject: str, gap: Gap, measured: Kpi | None = None) -> _Finding:
    return _Finding(Outcome.HOLD, f"{subject}: HOLD because {gap.words}", gap.cause, measured)


def _checks(blessing: Blessing, threshold: Threshold, bench: _Bench) -> Iterable[Check]:
    """One check per slice column asked about; none for "worst:*" on a dataset that declares no slices."""
    name = threshold.name_in(bench.evidence.task_metric)
    column = threshold.slice.removeprefix(WORST)
    for asked in bench.evidence.slices if column == ANY_COLUMN else (column,):
        judge_steps = _judge_worst_group if asked else _judge_all
        finding = judge_steps(name, asked, threshold, bench)
        yield Check(
            kpi=name,
            slice=f"{WORST}{asked}" if asked else "",
            threshold=threshold,
            outcome=finding.outcome,
            reason=finding.reason,
            measured=finding.measured,
            blessing=blessing,
            cause=finding.cause,
        )


def _judge_all(name: str, whole: str, threshold: Threshold, bench: _Bench) -> _Finding:
    found = _find(name, threshold, bench, lambda kpi: kpi.slice == whole)
    if len(found) != 1:
        versus = f" against {threshold.versus}" if threshold.versus else ""
        return _hold(f"{name}{versus}", _absence(threshold, bench, len(found)))
    return _judge_one(found[0], threshold, bench, bench.policy.needed(name))


def _judge_worst_group(name: str, column: str, threshold: Threshold, bench: _Bench) -> _Finding:
    """Every group that is large enough must keep the bound: the answer is that of the worst one."""
    groups = _find(name, threshold, bench, lambda kpi: kpi.slice.startswith(f"{column}="))
    countable = [kpi for kpi in groups if kpi.n >= threshold.min_group]
    if not countable:
        lacking = f"none of {len(groups)} groups has {threshold.min_group} windows"
        return _hold(f"{name} by {column}", gap("no_group", lacking, len(groups), threshold.min_group))
    if len({kpi.slice for kpi in countable}) != len(countable):
        return _hold(f"{name} by {column}", gap("group_twice", "a group was measured twice"))
    findings = [_judge_one(kpi, threshold, bench, threshold.min_group) for kpi in countable]
    finding = max(findings, key=lambda finding: _badness(finding, KINDS[name]))
    return finding._replace(reason=f"{finding.reason}; worst of {len(countable)} groups of {column}")


def _badness(finding: _Finding, kind: KpiKind) -> tuple[int, float]:
    assert finding.measured is not None  # _judge_one always says what it judged
    value = finding.measured.value
    loss = -value if kind.higher_is_better else value
    return _SEVERITY_OF_OUTCOME[finding.outcome], math.inf if math.isnan(loss) else loss


def _find(name: str, threshold: Threshold, bench: _Bench, wanted: Callable[[Kpi], bool]) -> list[Kpi]:
    return [kpi for kpi in bench.kpis if kpi.name == name and kpi.versus == threshold.versus and wanted(kpi)]


def _absence(threshold: Threshold, bench: _Bench, num_found: int) -> Gap:
    if threshold.versus and (reason := bench.evidence.not_comparable.get(threshold.versus)):
        return gap("other_windows", reason)
    if threshold.versus and threshold.versus not in bench.evidence.references:
        return gap("no_reference", f"there is no {threshold.versus} to compare with")
    if num_found:
        return gap("repeated", f"it was measured {num_found} times", num_found, 1)
    return gap("unmeasured", "it was not measured")


def _judge_one(kpi: Kpi, threshold: Threshold, bench: _Bench, needed: int) -> _Finding:
    said = _said(kpi, threshold, bench)
    lacking = _gap_in_evidence(kpi, threshold, bench, needed)
    if lacking:
        return _hold(said, lacking, kpi)
    bound = bound_of(kpi, threshold)
    outcome = _compare(kpi, bound, KINDS[kpi.name].higher_is_better)
    reason = f"{said}, allowed {_number(bound)}: {_explain(outcome, kpi)}"
    return _Finding(outcome, reason, Cause(kind=_COMPARED[outcome]), kpi)


def _gap_in_evidence(kpi: Kpi, threshold: Threshold, bench: _Bench, needed: int) -> Gap | None:
    """Why this KPI proves nothing; None when it may be judged."""
    evidence, policy = bench.evidence, bench.policy
    if kpi.checkpoint != evidence.checkpoint:
        other, ours = kpi.checkpoint[:12], evidence.checkpoint[:12]
        return gap("foreign", f"it was measured on checkpoint {other}, not {ours}")
    if kpi.snapshot != evidence.snapshot:
        other, ours = kpi.snapshot[:12], evidence.snapshot[:12]
        return gap("foreign", f"it was measured on snapshot {other}, not {ours}")
    if threshold.versus and (reason := _gap_in_reference(kpi, threshold, evidence)):
        return reason
    if kpi.n < needed:
        few = f"{kpi.n} {KINDS[kpi.name].counted} are too few, {needed} are needed"
        return gap("few", few, kpi.n, needed)
    if not _is_readable(kpi):
        return gap("no_number", "the value or its interval is not a possible number")
    most, judged_at = policy.max_age_hours, evidence.judged_at
    old = staleness(evidence, most, judged_at) or too_old(kpi.measured_at, most, judged_at)
    return old or _gap_in_confidence(kpi, bench)


def _gap_in_confidence(kpi: Kpi, bench: _Bench) -> Gap | None:
    """An interval less certain than this time of asking needs proves nothing, nor does asking too often."""
    kind, policy, look = KINDS[kpi.name], bench.policy, bench.evidence.look
    if kind.counted == "windows" and look > len(policy.looks):
        nth = f"{look}{ {2: 'nd', 3: 'rd'}.get(look, 'th') }"
        said = f"it is asked for the {nth} time, {len(policy.looks)} are allowed: train a new candidate"
        return gap("asked", said, look, len(policy.looks))
    if kpi.low == kpi.high or not (kind.is_estimated or kpi.confidence):
        return None
    needed = policy.confidence_at(look) if kind.counted == "windows" else policy.confidence
    if kpi.confidence is None or kpi.confidence < needed - 1e-9:
        stated = "no confidence" if kpi.confidence is None else f"{kpi.confidence:.1%}"
        said = f"its interval states {stated}, {needed:.1%} is needed"
        return gap("confidence", said, kpi.confidence, needed)
    return None


def _gap_in_reference(kpi: Kpi, threshold: Threshold, evidence: Evidence) -> Gap | None:
    assert threshold.versus is not None
    expected = evidence.references.get(threshold.versus)
    if expected is None:
        return gap("no_reference", f"there is no {threshold.versus} to compare with")
    if threshold.versus in evidence.not_comparable:
        return gap("other_windows", evidence.not_comparable[threshold.versus])
    if kpi.reference_checkpoint != expected:
        other = str(kpi.reference_checkpoint)[:12]
        return gap("foreign", f"it was compared with {other}, not with {threshold.versus} {expected[:12]}")
    if threshold.relative_margin is not None and not _is_finite(kpi.reference_value):
        said = f"the value of {threshold.versus} is not a number, so a share of it allows nothing"
        return gap("no_number", said)
    return None


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _is_readable(kpi: Kpi) -> bool:
    """Possible numbers in order; infinite only where "never" is an answer (payback)."""
    numbers, kind = (kpi.low, kpi.value, kpi.high), KINDS[kpi.name]
    if any(math.isnan(number) for number in numbers) or not kpi.low <= kpi.high:
        return False
    if not kind.may_be_infinite and not all(math.isfinite(number) for number in numbers):
        return False
    return kpi.versus is not None or kind.lowest <= kpi.value <= kind.highest


def _compare(kpi: Kpi, bound: float, higher_is_better: bool) -> Outcome:
    """By the KPI's own pessimistic end, and for a group by the optimistic end of the band over all."""
    low, high = _optimistic_ends(kpi)
    pessimistic, optimistic = (kpi.low, high) if higher_is_better else (-kpi.high, -low)
    floor = bound if higher_is_better else -bound
    if pessimistic >= floor:
        return Outcome.PASS
    return Outcome.FAIL if optimistic < floor else Outcome.HOLD


def _optimistic_ends(kpi: Kpi) -> tuple[float, float]:
    if not kpi.slice:
        return kpi.low, kpi.high
    if kpi.joint_low is None or kpi.joint_high is None or math.isnan(kpi.joint_high - kpi.joint_low):
        return -math.inf, math.inf  # without a band, one group of many cannot be called harmed
    return min(kpi.low, kpi.joint_low), max(kpi.high, kpi.joint_high)


def _explain(outcome: Outcome, kpi: Kpi) -> str:
    whole = "the band over all groups" if kpi.slice else "the interval"
    return {
        Outcome.PASS: "PASS, even the pessimistic end of the interval keeps it",
        Outcome.HOLD: f"HOLD because {whole} lies on both sides of it",
        Outcome.FAIL: f"FAIL, even the optimistic end of {whole} breaks it",
    }[outcome]


def _said(kpi: Kpi, threshold: Threshold, bench: _Bench) -> str:
    where = f" for {kpi.slice}" if kpi.slice else ""
    at = f" at {100 * kpi.confidence:.4g}%" if kpi.confidence is not None and kpi.low != kpi.high else ""
    if not threshold.versus:
        return f"{kpi.name}{where} {_estimate(kpi)}{kpi.unit and ' ' + kpi.unit}{at}"
    same = (kpi.name, kpi.slice, None)
    own = [other for other in bench.kpis if (other.name, other.slice, other.versus) == same]
    subject = f" {_estimate(own[0])}" if own else ""
    return f"{kpi.name}{where}{subject} vs {threshold.versus}: difference {_estimate(kpi)}{at}{_band(kpi)}"


def _band(kpi: Kpi) -> str:
    if kpi.joint_low is None or kpi.joint_high is None:
        return ""
    return f" (all groups at once [{_number(kpi.joint_low)}, {_number(kpi.joint_high)}])"


def _estimate(kpi: Kpi) -> str:
    if kpi.low == kpi.value == kpi.high:
        return _number(kpi.value)
    return f"{_number(kpi.value)} [{_number(kpi.low)}, {_number(kpi.high)}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < math.inf else f"{value:.3g}"
