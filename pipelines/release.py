"""Letting a model in: versions in the registry, decisions in the release log, one after the other."""

import getpass

from pipelines.candidates import register
from pipelines.checkpoint import Checkpoint
from pipelines.job import Job
from pipelines.release_log import Action, Stage
from pipelines.rollout import (
    CLIMB,
    RolloutState,
    apply_verdict,
    bootstrap,
    challenge,
    current_state,
    demote,
    reconcile,
)
from validation.gates import Verdict


def start_pilot(job: Job, incumbent: Checkpoint) -> RolloutState:
    """Put the dense incumbent live, once: the explicit decision with which a rollout starts."""
    state = current_state(job.log, job.spec.name)
    if state.live is None:
        version = register(job, incumbent, "incumbent", None)
        reason = "dense incumbent: what sparse inference has to match"
        state = bootstrap(job.log, state, version, getpass.getuser(), reason)
        reconcile(job.log, job.tracker)
    return state


def decide(job: Job, candidate: Checkpoint, verdict: Verdict, density: float) -> RolloutState:
    """Record the verdict and move what it moves. A decision that was made before is not made again."""
    state = current_state(job.log, job.spec.name)
    if any(entry.decision.verdict == verdict.digest() for entry in job.log.entries()):
        return state
    version = register(job, candidate, verdict.stage, density)
    state = _back_to(job, state, Stage(verdict.stage))
    state = apply_verdict(job.log, state, version, verdict, getpass.getuser())
    reconcile(job.log, job.tracker)
    return state


def enter_challenger(job: Job, challenger: Checkpoint, reason: str, density: float) -> RolloutState:
    """Register a retrained model as the one that will meet the champion; once, however it ended."""
    state = current_state(job.log, job.spec.name)
    if _has_challenged(job, challenger):
        return state
    version = register(job, challenger, "challenger", density)
    state = challenge(job.log, state, version, getpass.getuser(), reason)
    reconcile(job.log, job.tracker)
    return state


def _back_to(job: Job, state: RolloutState, stage: Stage) -> RolloutState:
    """Where data, plan, policy or code changed, a rollout climbs anew from a stage that it had left behind.

    What is live stays live until a gate lets something else in.
    """
    if CLIMB.index(stage) >= CLIMB.index(state.stage):
        return state
    reason = f"a new climb asks the {stage} gate: data, plan, policy or code changed since it was passed"
    return demote(job.log, state, stage, getpass.getuser(), reason)


def _has_challenged(job: Job, challenger: Checkpoint) -> bool:
    return any(
        entry.decision.action is Action.RETRAIN and entry.decision.checkpoint == challenger.sha256
        for entry in job.log.entries()
    )
