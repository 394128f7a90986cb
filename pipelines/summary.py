"""What a rollout leaves for people: a table a manager can read and a file with everything in it."""

import math
from pathlib import Path

from pipelines.approvals import waiting_sentence
from pipelines.budgets import Calibration
from pipelines.cost import CostComparison
from pipelines.edge.bundle import Bundle
from pipelines.evaluation import Evaluation
from pipelines.files import replace_file
from pipelines.fingerprint import Environment
from pipelines.job import Prepared
from pipelines.release_log import Stage
from pipelines.replay import Month
from pipelines.rollout import CLIMB, RolloutState
from pipelines.values import Values
from validation.gates import Check, Outcome
from validation.kpis import KINDS
from validation.record import Record


class Row(Record):
    """One line of the table."""

    stage: str
    kpi: str
    value: str
    threshold: str
    verdict: str


class RolloutSummary(Record):
    """Everything that a rollout measured and decided, with versions and hashes."""

    dataset: str
    description: str
    finished_at: str
    seconds: float
    environment: Environment
    policy: str
    """Digest of the policy."""
    min_timings: int
    """The policy's: fewer timings make no interval."""
    prepared: Prepared
    evaluations: tuple[Evaluation, ...]
    how_good: tuple[Values, ...]
    """Candidate, dense and baseline, each by itself, on the same windows."""
    costs: tuple[CostComparison, ...]
    calibration: Calibration | None
    bundle: Bundle | None
    months: tuple[Month, ...]
    state: RolloutState
    sentence: str
    """Where the rollout stands, in words."""

    def rows(self) -> list[Row]:
        """The table: one row per check, stage by stage."""
        rows = [
            _row(evaluation, check) for evaluation in self.evaluations for check in evaluation.verdict.checks
        ]
        return rows


def _row(evaluation: Evaluation, check: Check) -> Row:
    name = KINDS[check.kpi].name.replace("_", " ")
    versus = f" vs {check.threshold.versus}" if check.threshold.versus else ""
    where = f" ({check.slice.replace('worst:', 'worst ')})" if check.slice else ""
    note = "" if check.severity == "required" else f" ({check.severity.replace('_', ' ')})"
    return Row(
        stage=evaluation.stage,
        kpi=f"{name}{versus}{where}",
        value=_value(check),
        threshold=_threshold(check),
        verdict=f"{check.outcome}{note}",
    )


def _value(check: Check) -> str:
    kpi = check.measured
    if kpi is None:
        return "not measured"
    unit = KINDS[kpi.name].unit
    if kpi.name == "payback_days" and math.isinf(kpi.value):
        return "does not pay back"
    if unit == "B":
        return f"{kpi.value / 2**20:.1f} MiB [{kpi.low / 2**20:.1f}, {kpi.high / 2**20:.1f}]"
    sign = "+" if kpi.versus else ""
    numbers = [
        f"{number:{sign}.3f}" if abs(number) < 1000 else _large(number)
        for number in (kpi.value, kpi.low, kpi.high)
    ]
    range_ = "no interval" if math.isnan(kpi.low) else f"{numbers[1]}, {numbers[2]}"
    return f"{numbers[0]} [{range_}] {unit}".rstrip()


def _large(number: float) -> str:
    return "never" if math.isinf(number) else f"{number:,.0f}"


def _threshold(check: Check) -> str:
    asked = check.threshold
    if asked.at_least is not None:
        return f"at least {asked.at_least:g}"
    if asked.at_most is not None:
        in_mib = KINDS[check.kpi].unit == "B"
        return f"at most {asked.at_most / 2**20:g} MiB" if in_mib else f"at most {asked.at_most:g}"
    if asked.relative_margin is not None:
        return f"not worse by over {asked.relative_margin:.0%}"
    return f"not worse by over {asked.margin:g}"


def sentence_of(evaluations: tuple[Evaluation, ...], state: RolloutState) -> str:
    """Where the rollout stands and, if it stopped, at which gate and why."""
    last = evaluations[-1] if evaluations else None
    if last is None:
        return "No gate was asked."
    if last.verdict.outcome is not Outcome.PASS and last.stage != "steady":
        reasons = " / ".join(last.verdict.reasons)
        return f"The climb stopped at the {last.stage} gate with {last.verdict.outcome}: {reasons}"
    if state.pending is not None:
        return waiting_sentence(state, state.pending)
    judged = next((each.verdict for each in reversed(evaluations) if each.stage != "steady"), None)
    releases = [release.checkpoint for release in state.releases]
    if judged is not None and judged.evidence.checkpoint not in releases:
        return (
            f"Every gate passed, but version {state.champion} is live: an earlier rollout's, or one that was "
            "rolled back to. See: dankai history; start this one in another DANKAI_HOME to release it."
        )
    if judged is not None and CLIMB.index(state.stage) <= CLIMB.index(Stage(judged.stage)):
        return (
            f"The {judged.stage} gate passed, which was acted on before; the rollout was taken back since "
            f"to stage {state.stage}, with version {state.champion} live. See: dankai history."
        )
    return f"Stage {state.stage} is reached; version {state.champion} is live."


def write_summary(summary: RolloutSummary, home: Path) -> Path:
    """summary.json in the home folder, whole or not at all."""
    path = home / "summary.json"
    replace_file(path, summary.model_dump_json(indent=1).encode() + b"\n")
    return path
