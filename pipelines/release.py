"""Letting a model in: versions in the registry, decisions in the release log, one after the other."""

from typing import Any

from pipelines.actors import Actor
from pipelines.approvals import approve as record_approval
from pipelines.approvals import asked_in_vain, conclude, decline, find_request, refuse_expired
from pipelines.candidates import register
from pipelines.checkpoint import Checkpoint
from pipelines.decisions import apply_verdict, bootstrap, challenge, next_stage, terms_of
from pipelines.job import Job, Report, open_job_of
from pipelines.model_card import publish
from pipelines.reconciliation import reconcile, refuse_lost_entries
from pipelines.release_log import Action, ApprovalTerms, Decision, ReleaseLog, Stage
from pipelines.rollout import CLIMB, RolloutState, current_state, opponent
from pipelines.second_look import Lineup, keep_case, look_again, read_case
from pipelines.settings import Settings
from pipelines.steps import stored
from validation.errors import InputError
from validation.gates import Outcome, Verdict
from validation.policy import Approval

UNATTENDED = Approval(approvers=1, trainer_may_approve=True, expires_hours=72)
"""What a run that no person started has to wait for where the policy asks for no approval of its own."""


def refuse_without_bootstrap(log: ReleaseLog, dataset: str, reason: str | None) -> None:
    """Raise InputError where nothing is live yet and nobody said why the first model may be."""
    if current_state(log, dataset).live is None and not (reason or "").strip():
        raise InputError(
            f"{dataset}: nothing is live yet, and the first model is let in by a person's word alone; "
            'say why with --bootstrap "REASON"'
        )


def live_checkpoint(settings: Settings, dataset: str) -> Checkpoint:
    """The model that is live for a dataset, as it was trained here. Raises InputError where there is none."""
    live = None
    if settings.home.is_dir():  # opening the log would make it
        live = current_state(ReleaseLog.open(settings), dataset).live
    if live is None:
        raise InputError(
            f"{dataset}: nothing is live in {settings.home}; run its rollout, or set DANKAI_HOME"
        )
    return trained_checkpoint(settings, dataset, live.checkpoint)


def champion_to_beat(job: Job, candidate: Checkpoint) -> Checkpoint | None:
    """What goes if a candidate comes; None where nothing was. Raises InputError where it is lost.

    Of a candidate that went live already it is what it replaced, so that its gate is not asked anew.
    """
    weights = opponent(current_state(job.log, job.spec.name), candidate.sha256)
    return trained_checkpoint(job.settings, job.spec.name, weights) if weights else None


def trained_checkpoint(settings: Settings, dataset: str, sha256: str) -> Checkpoint:
    """The model with these weights, as it was trained here. Raises InputError where it was not."""
    for checkpoint in stored(settings.steps, f"{dataset}-train", Checkpoint, settings.keys):
        if checkpoint.sha256 == sha256:
            return checkpoint
    raise InputError(f"{dataset}: {settings.steps} has no training of the live model {sha256[:12]}")


def start_pilot(job: Job, incumbent: Checkpoint, reason: str | None) -> RolloutState:
    """Put the dense incumbent live, once: the explicit decision with which a rollout starts."""
    refuse_without_bootstrap(job.log, job.spec.name, reason)
    state = current_state(job.log, job.spec.name)
    if state.live is None:
        refuse_lost_entries(job.log.entries(), job.spec.name, job.tracker)
        version = register(job, incumbent, "incumbent", None)
        state = bootstrap(job.log, state, version, job.actor, reason or "")
        reconcile(job.log, job.tracker)
        publish(job, version.version, incumbent, None)
    return state


def decide(job: Job, lineup: Lineup, verdict: Verdict, density: float) -> RolloutState:
    """Record the verdict and move what it moves. A decision that was made before is not made again."""
    state = current_state(job.log, job.spec.name)
    if _is_decided(job, state, verdict):
        if state.pending is not None and state.pending.verdict == verdict.digest():
            keep_case(job, lineup, verdict)  # it may be lost or damaged
        return state
    version = register(job, lineup.candidate, verdict.stage, density)
    terms = _terms(job, state, lineup.candidate, verdict)
    if terms is not None:
        keep_case(job, lineup, verdict)
    state = apply_verdict(job.log, state, version, verdict, job.actor, terms)
    reconcile(job.log, job.tracker)
    publish(job, version.version, lineup.candidate, verdict)
    return state


def enter_challenger(job: Job, challenger: Checkpoint, reason: str, density: float) -> RolloutState:
    """Register a retrained model as the one that will meet the champion; once, however it ended."""
    state = current_state(job.log, job.spec.name)
    if _has_challenged(job, challenger):
        return state
    version = register(job, challenger, "challenger", density)
    state = challenge(job.log, state, version, job.actor, reason)
    reconcile(job.log, job.tracker)
    publish(job, version.version, challenger, None)
    return state


def answer_request(
    settings: Settings, request: str, actor: Actor, reason: str, approves: bool, report: Report
) -> RolloutState:
    """One person's answer to a request; after the last approval it needs, the second look and what follows.

    An approval that was recorded before a crash is not recorded twice: the same call, of somebody who
    approved, goes on from there.
    """
    log = ReleaseLog.open(settings)
    state, pending = find_request(log, request)
    refuse_expired(state.dataset, pending)
    case = read_case(settings, state.dataset, pending.verdict)
    job = open_job_of(case.spec(), case.policy, settings, report)
    if not approves:
        state = decline(log, state, actor, reason)
    elif not pending.is_approved:
        state = record_approval(log, state, actor, reason)
    state = conclude(log, state, lambda _: look_again(job, case), actor)
    reconcile(log, job.tracker)
    publish(job, pending.version, case.lineup.candidate, case.verdict)
    return state


def _terms(job: Job, state: RolloutState, candidate: Checkpoint, verdict: Verdict) -> ApprovalTerms | None:
    """What a PASS still has to wait for; None where the gate's word is enough."""
    if verdict.outcome is not Outcome.PASS:
        return None
    stage: Any = next_stage(state.stage, verdict).value
    approval = job.policy.approval(stage)
    if approval is None and job.actor.automatic:
        approval = UNATTENDED
    return terms_of(approval, candidate.account) if approval else None


def _is_decided(job: Job, state: RolloutState, verdict: Verdict) -> bool:
    """Recorded already, about a stage left behind, or against a champion that is not live any more.

    A request that nobody answered in time, or that was void before, decided nothing: it is asked anew.
    """
    vain = asked_in_vain(job.log, state)
    entries = [entry for entry in job.log.entries() if entry.hash not in vain]
    recorded = {entry.decision.verdict for entry in entries if entry.decision.dataset == job.spec.name}
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
