"""Decisions about what is live, each recorded as one entry of the release log or refused with one line.

Every function takes the state it was decided on and returns the state that it led to. When somebody else
decided in between, StaleDecision is raised and nothing is recorded.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pipelines.actors import Actor
from pipelines.registry import ModelVersion, registered_name
from pipelines.release_log import Action, ApprovalTerms, Decision, GateLook, ReleaseLog, Stage
from pipelines.rollout import CLIMB, Release, RolloutState, advance, rest_on
from validation.errors import InputError
from validation.gates import Outcome, Verdict
from validation.policy import Approval

_ACTION_OF_OUTCOME = {Outcome.PASS: Action.PROMOTE, Outcome.HOLD: Action.HOLD, Outcome.FAIL: Action.FAIL}


def bootstrap(
    log: ReleaseLog, state: RolloutState, first: ModelVersion, actor: Actor, reason: str
) -> RolloutState:
    """Put the first model live by a person's explicit word; starts the pilot."""
    return record(log, state, about(state, first, Action.BOOTSTRAP, Stage.PILOT, actor, reason))


def apply_verdict(
    log: ReleaseLog,
    state: RolloutState,
    candidate: ModelVersion,
    verdict: Verdict,
    actor: Actor,
    terms: ApprovalTerms | None = None,
) -> RolloutState:
    """Record what the gate said of `candidate`: PASS promotes, HOLD holds, FAIL fails.

    With `terms` a PASS only asks for the promotion, and people answer (approvals.py). The verdict of the
    stage that was reached climbs to the next one; the steady gate's replaces the champion. Raises InputError
    where the verdict is about something else than this candidate, stage or champion.
    """
    refuse_foreign(verdict, state, candidate)
    action = _ACTION_OF_OUTCOME[verdict.outcome]
    if action is Action.PROMOTE and terms is not None:
        action = Action.REQUEST
    is_pass = verdict.outcome is Outcome.PASS
    to_stage = next_stage(state.stage, verdict) if is_pass else state.stage
    extra = {"terms": terms} if action is Action.REQUEST else {}
    plain = about(state, candidate, action, to_stage, actor, reasons_of(verdict))
    return record(log, state, plain.model_copy(update={**evidence_of(verdict), **extra}))


def terms_of(approval: Approval, trainer: str) -> ApprovalTerms:
    """What a promotion asked for now needs by the policy. `trainer` is the account that trained it."""
    expires = datetime.now(UTC) + timedelta(hours=approval.expires_hours)
    return ApprovalTerms(
        persons=approval.approvers,
        expires=expires.isoformat(timespec="seconds"),
        trainer=trainer,
        trainer_may_approve=approval.trainer_may_approve,
    )


def challenge(
    log: ReleaseLog, state: RolloutState, challenger: ModelVersion, actor: Actor, reason: str
) -> RolloutState:
    """Record a retrained model as challenger of what is live."""
    return record(log, state, about(state, challenger, Action.RETRAIN, state.stage, actor, reason))


def demote(log: ReleaseLog, state: RolloutState, to_stage: Stage, actor: Actor, reason: str) -> RolloutState:
    """Take the rollout back to a lower stage; what is live stays live."""
    live = state.live or _nothing_live(state)
    return record(log, state, _about_release(state, live, Action.DEMOTE, to_stage, actor, reason))


def rollback(log: ReleaseLog, state: RolloutState, actor: Actor, reason: str) -> RolloutState:
    """Put the last green release back live, in the stage it had reached. Needs the log alone."""
    back = state.last_green or _nowhere_back(state)
    return record(log, state, _about_release(state, back, Action.ROLLBACK, back.stage, actor, reason))


# What the functions above are made of --------------------------------------------------------------


def record(log: ReleaseLog, state: RolloutState, decision: Decision) -> RolloutState:
    """Append a legal decision that has a reason; the state after it."""
    if not decision.reason.strip():
        raise InputError(f"{state.dataset}: {decision.action} needs a reason; say why in one line")
    after = advance(state, decision)
    return rest_on(after, log.append(decision, expected_head=state.head))


def about(
    state: RolloutState, version: ModelVersion, action: Action, to_stage: Stage, actor: Actor, reason: str
) -> Decision:
    if version.name != registered_name(state.dataset):
        raise InputError(f"{state.dataset}: {version.name} is another dataset's model")
    return Decision(
        dataset=state.dataset,
        action=action,
        from_stage=state.stage,
        to_stage=to_stage,
        version=version.version,
        checkpoint=version.checkpoint,
        snapshot=version.snapshot,
        actor=actor.name,
        account=actor.account,
        automatic=actor.automatic,
        reason=reason,
    )


def evidence_of(verdict: Verdict) -> Mapping[str, object]:
    """The fields of a decision that say what it rests on."""
    looks = verdict.evidence.looks
    looked = GateLook(gate=Stage(verdict.stage), look=looks[-1]) if looks else None
    hashes = {"verdict": verdict.digest(), "policy": verdict.policy_digest}
    return {"outcome": verdict.outcome, **hashes, "looked": looked}


def reasons_of(verdict: Verdict) -> str:
    return "; ".join(verdict.reasons) or f"every required check of the {verdict.stage} gate passed"


def next_stage(stage: Stage, verdict: Verdict) -> Stage:
    """Where a PASS leads."""
    return stage if verdict.stage == Stage.STEADY else CLIMB[CLIMB.index(stage) + 1]


def refuse_foreign(verdict: Verdict, state: RolloutState, candidate: ModelVersion) -> None:
    """Raise InputError where the verdict is about something else than this candidate, stage or champion."""
    if verdict.stage not in (state.stage, Stage.STEADY):
        raise InputError(f"{state.dataset}: a {verdict.stage} verdict decides nothing at stage {state.stage}")
    if verdict.evidence.checkpoint != candidate.checkpoint:
        raise InputError(
            f"{state.dataset}: the verdict is not about version {candidate.version}'s checkpoint"
        )
    champion = verdict.evidence.references.get("champion")
    live = state.live.checkpoint if state.live else None
    # A HOLD may say that the champion could not be scored; a PASS may not.
    is_lacking = champion is None and (verdict.outcome is not Outcome.PASS or verdict.stage != Stage.STEADY)
    if not is_lacking and champion != live:
        raise InputError(f"{state.dataset}: the verdict compared with another champion; judge again")


def _about_release(
    state: RolloutState, release: Release, action: Action, to_stage: Stage, actor: Actor, reason: str
) -> Decision:
    version = ModelVersion(
        name=registered_name(state.dataset),
        version=release.champion,
        checkpoint=release.checkpoint,
        snapshot=release.snapshot,
    )
    return about(state, version, action, to_stage, actor, reason)


def _nothing_live(state: RolloutState) -> Release:
    raise InputError(f"{state.dataset}: nothing is live yet; see: dankai history {state.dataset}")


def _nowhere_back(state: RolloutState) -> Release:
    if state.live is None:
        _nothing_live(state)
    raise InputError(
        f"{state.dataset}: there is no earlier release to go back to: version {state.champion} is the first; "
        f"see: dankai history {state.dataset}"
    )
