"""What a rollout leaves for people: a table a manager can read and a file with everything in it."""

from pathlib import Path

from pipelines.approvals import waiting_sentence
from pipelines.budgets import Calibration
from pipelines.check_rows import Row, row_of
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
from validation.gates import Outcome
from validation.record import Record


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

    @property
    def ended(self) -> str:
        """The same in three words, such as `HOLD at pilot`, for the name of a run's last state."""
        if self.state.pending is not None:
            return f"PASS, waits for approval to {self.state.pending.to_stage}"
        climbed = [each for each in self.evaluations if each.stage != "steady"]
        if not climbed:
            return "No gate asked"
        return f"{climbed[-1].verdict.outcome} at {climbed[-1].stage}"

    @property
    def verdict(self) -> str:
        """What the last gate of the climb said; none where no gate was asked."""
        climbed = [each.verdict.outcome for each in self.evaluations if each.stage != "steady"]
        return str(climbed[-1]) if climbed else "none"

    def rows(self) -> list[Row]:
        """The table: one row per check, stage by stage."""
        rows = [
            row_of(evaluation.stage, check)
            for evaluation in self.evaluations
            for check in evaluation.verdict.checks
        ]
        return rows


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
