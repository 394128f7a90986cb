"""Letting a model in: versions in the registry, decisions in the release log, one after the other."""

import getpass

from pipelines.candidates import register
from pipelines.checkpoint import Checkpoint
from pipelines.job import Job
from pipelines.release_log import Action, Decision, ReleaseLog, Stage
from pipelines.rollout import (
    CLIMB,
    RolloutState,
    apply_verdict,
    bootstrap,
    challenge,
    current_state,
    reconcile,
)
from pipelines.settings import Settings
from pipelines.steps import stored
from validation.errors import InputError
from validation.gates import Verdict


def live_checkpoint(settings: Settings, dataset: str) -> Checkpoint:
    """The model that is live for a dataset, as it was trained here. Raises InputError where there is none."""
    live = None
    if settings.home.is_dir():  # opening the log would make it
        live = current_state(ReleaseLog.open(settings), dataset).live
    if live is None:
        raise InputError(
            f"{dataset}: nothing is live in {settings.home}; run its rollout, or set DANKAI_HOME"
        )
    for checkpoint in stored(settings.steps, f"{dataset}-train", Checkpoint):
        if checkpoint.sha256 == live.checkpoint:
            return checkpoint
    raise InputError(f"{dataset}: {settings.steps} has no training of the live model {live.checkpoint[:12]}")


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
    if _is_decided(job, state, verdict):
        return state
    version = register(job, candidate, verdict.stage, density)
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


def _is_decided(job: Job, state: RolloutState, verdict: Verdict) -> bool:
    """Recorded already, about a stage left behind, or against a champion that is not live any more."""
    recorded = {decision.verdict for decision in _own_decisions(job)}
    champion = verdict.evidence.references.get("champion")
    is_past = champion is not None and (state.live is None or champion != state.live.checkpoint)
    is_left = CLIMB.index(Stage(verdict.stage)) < CLIMB.index(state.stage)
    return verdict.digest() in recorded or is_left or is_past


def _has_challenged(job: Job, challenger: Checkpoint) -> bool:
    return any(
        decision.action is Action.RETRAIN and decision.checkpoint == challenger.sha256
        for decision in _own_decisions(job)
    )


def _own_decisions(job: Job) -> list[Decision]:
    decisions = (entry.decision for entry in job.log.entries())
    return [decision for decision in decisions if decision.dataset == job.spec.name]
