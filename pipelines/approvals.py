"""People answer what a gate asked for: approve, decline, and the second look before it counts.

A request, each approval and what came of it are entries of the release log. Enough approvals let the
candidate be judged again on the data as it is then; only another PASS promotes.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from pipelines.actors import Actor
from pipelines.decisions import about, evidence_of, next_stage, reasons_of, record, refuse_foreign
from pipelines.registry import ModelVersion, registered_name
from pipelines.release_log import Action, ReleaseLog
from pipelines.rollout import Pending, RolloutState, advance, replay, rest_on
from validation.errors import InputError
from validation.gates import Outcome, Verdict

JudgeAgain = Callable[[Pending], Verdict]
_ACTION_OF_OUTCOME = {Outcome.PASS: Action.PROMOTE, Outcome.HOLD: Action.HOLD, Outcome.FAIL: Action.FAIL}


def states(log: ReleaseLog) -> list[RolloutState]:
    """Where every dataset of the log stands, by name."""
    entries = log.entries()
    return [replay(entries, name) for name in sorted({entry.decision.dataset for entry in entries})]


def find_request(log: ReleaseLog, request_id: str) -> tuple[RolloutState, Pending]:
    """The state whose promotion waits under this id. Raises InputError saying what waits instead."""
    waiting = [(state, state.pending) for state in states(log) if state.pending]
    for state, pending in waiting:
        if len(request_id) >= len(pending.id) and pending.request.startswith(request_id):
            return state, pending
    ids = ", ".join(f"{pending.id} ({state.dataset})" for state, pending in waiting) or "nothing"
    asked = any(
        entry.decision.action is Action.REQUEST and entry.hash.startswith(request_id)
        for entry in log.entries()
        if len(request_id) >= 8
    )
    what = "was answered or overtaken already" if asked else "is no request"
    raise InputError(f"{request_id}: {what}; waiting for approval: {ids}. See: dankai history")


def approve(log: ReleaseLog, state: RolloutState, actor: Actor, reason: str) -> RolloutState:
    """Record a person's approval. Raises InputError once it expired or where this person may not approve."""
    return _answer(log, state, Action.APPROVE, actor, reason)


def decline(log: ReleaseLog, state: RolloutState, actor: Actor, reason: str) -> RolloutState:
    """Record that a person says no; the request is over and the candidate stays what it was."""
    return _answer(log, state, Action.DECLINE, actor, reason)


def conclude(log: ReleaseLog, state: RolloutState, judge_again: JudgeAgain, actor: Actor) -> RolloutState:
    """Judge an approved candidate once more and record what came of it; nothing while approvals are lacking.

    `judge_again` scores the candidate and what it is compared with on the data as it is now. Raises
    InputError where the request expired meanwhile, where `actor` did not approve it or another policy judged,
    StaleDecision where something else was decided then.
    """
    pending = state.pending
    if pending is None or not pending.is_approved:
        return state
    refuse_expired(state.dataset, pending)
    _refuse_bystander(pending, actor)
    verdict, candidate = judge_again(pending), _version(state, pending)
    refuse_foreign(verdict, state, candidate)
    if verdict.policy_digest != pending.policy:
        raise InputError(
            f"{pending.id}: judged again by policy {verdict.policy_digest[:12]}, asked for by policy "
            f"{pending.policy[:12]}; run the rollout again"
        )
    action = _ACTION_OF_OUTCOME[verdict.outcome]
    to_stage = next_stage(state.stage, verdict) if action is Action.PROMOTE else state.stage
    reason = f"judged again after approval: {reasons_of(verdict)}"
    plain = about(state, candidate, action, to_stage, actor, reason)
    extra = {"request": pending.request}
    return record(log, state, plain.model_copy(update={**evidence_of(verdict), **extra}))


def waiting_sentence(state: RolloutState, pending: Pending) -> str:
    """What waits for whom, and what to type."""
    if has_expired(pending):
        asked = f"The request for version {pending.version} to go from {state.stage} to {pending.to_stage}"
        return f"{asked} expired at {pending.terms.expires}: run the rollout again to have it asked anew"
    lacking = pending.terms.persons - len(pending.approved_by)
    who = f"the approval of {lacking} {'person' if lacking == 1 else 'persons'}"
    if not lacking:
        who = f"its second look, for which {_names(pending)} approves once more,"
    ask = f'dankai approve {pending.id} --as NAME --reason "..."'
    return (
        f"Version {pending.version} passed its gate; going from {state.stage} to {pending.to_stage} waits "
        f"for {who} until {pending.terms.expires}: {ask}"
    )


def has_expired(pending: Pending) -> bool:
    return datetime.now(UTC) > datetime.fromisoformat(pending.terms.expires)


def asked_in_vain(log: ReleaseLog, state: RolloutState) -> set[str]:
    """Hashes of this dataset's requests that ended without an answer, so that the same verdict may ask anew.

    Their time ran out, or what was live was taken back meanwhile.
    """
    own = [entry for entry in log.entries() if entry.decision.dataset == state.dataset]
    vain, then = set[str](), RolloutState(dataset=state.dataset)
    for entry in own:
        if then.pending is not None and entry.decision.action in (Action.ROLLBACK, Action.DEMOTE):
            vain.add(then.pending.request)
        then = rest_on(advance(then, entry.decision), entry)
    if state.pending is not None and has_expired(state.pending):
        vain.add(state.pending.request)
    return vain


def waiting(log: ReleaseLog) -> list[tuple[RolloutState, Pending]]:
    """What people can answer now."""
    return [
        (state, state.pending) for state in states(log) if state.pending and not has_expired(state.pending)
    ]


def refuse_expired(dataset: str, pending: Pending) -> None:
    if has_expired(pending):
        raise InputError(
            f"{pending.id}: this request for {dataset} expired at {pending.terms.expires}; "
            "run the rollout again to have it judged and asked anew"
        )


def _answer(log: ReleaseLog, state: RolloutState, action: Action, actor: Actor, reason: str) -> RolloutState:
    pending = state.pending
    if pending is None:
        raise InputError(f"{state.dataset}: no request waits for approval; see: dankai history")
    refuse_expired(state.dataset, pending)
    to_stage = pending.to_stage if action is Action.APPROVE else state.stage
    plain = about(state, _version(state, pending), action, to_stage, actor, reason)
    return record(log, state, plain.model_copy(update={"request": pending.request}))


def _refuse_bystander(pending: Pending, actor: Actor) -> None:
    """The promotion is recorded under the name of whoever concludes it: somebody who stands for it."""
    stands = any(
        each.name == actor.name and each.account in ("", actor.account) for each in pending.approved_by
    )
    if not stands:
        raise InputError(
            f"{pending.id}: approved already by {_names(pending)}; only who approved it can have it concluded"
        )


def _names(pending: Pending) -> str:
    return " or ".join(each.name for each in pending.approved_by)


def _version(state: RolloutState, pending: Pending) -> ModelVersion:
    return ModelVersion(
        name=registered_name(state.dataset),
        version=pending.version,
        checkpoint=pending.checkpoint,
        snapshot=pending.snapshot,
    )
