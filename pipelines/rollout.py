"""The rollout as a state machine: none -> pilot -> training -> edge -> steady, and back.

The release log is the truth. A state is what replaying it gives; every change is one legal, logged
decision. Pure: nothing here reads a file or a clock. Deciding is in decisions.py and approvals.py,
making MLflow agree in reconciliation.py.
"""

from collections.abc import Callable, Iterable
from functools import reduce

from pipelines.actors import Actor
from pipelines.release_log import GENESIS, Action, ApprovalTerms, Decision, ReleaseEntry, ReleaseLog, Stage
from validation.errors import InputError
from validation.gates import Outcome
from validation.record import Record

CLIMB = (Stage.NONE, Stage.PILOT, Stage.TRAINING, Stage.EDGE, Stage.STEADY)
_OUTCOME_OF_ACTION = {
    Action.PROMOTE: Outcome.PASS,
    Action.REQUEST: Outcome.PASS,
    Action.HOLD: Outcome.HOLD,
    Action.FAIL: Outcome.FAIL,
}
_NEED_A_PERSON = (Action.BOOTSTRAP, Action.PROMOTE, Action.APPROVE, Action.DECLINE)


class Release(Record):
    """What was live: the stage reached with it, its version, and the pilot and edge versions then."""

    stage: Stage
    champion: int
    checkpoint: str
    snapshot: str
    pilot: int | None = None
    edge: int | None = None


class Pending(Record):
    """A promotion that passed its gate and waits for people. `request`: hash of the entry that asked."""

    version: int
    checkpoint: str
    snapshot: str
    to_stage: Stage
    verdict: str
    policy: str
    """Digest of the policy that asked; the second look is judged by the same."""
    terms: ApprovalTerms
    approved_by: tuple[Actor, ...] = ()
    request: str = ""

    @property
    def id(self) -> str:
        """What people type."""
        return self.request[:8]

    @property
    def is_approved(self) -> bool:
        return len(self.approved_by) >= self.terms.persons


class RolloutState(Record):
    """Where a dataset's rollout stands.

    `releases` is the way back: the last is live, the one below it last green. `head` is the hash of the
    log entry that it rests on; a decision made on it is refused once there is a newer one.
    """

    dataset: str
    releases: tuple[Release, ...] = ()
    challenger: int | None = None
    pending: Pending | None = None
    head: str = GENESIS

    @property
    def live(self) -> Release | None:
        return self.releases[-1] if self.releases else None

    @property
    def last_green(self) -> Release | None:
        return self.releases[-2] if len(self.releases) > 1 else None

    @property
    def stage(self) -> Stage:
        return self.live.stage if self.live else Stage.NONE

    @property
    def champion(self) -> int | None:
        return self.live.champion if self.live else None

    def aliases(self) -> dict[str, int]:
        """The registry aliases that say the same, champion first. What waits for approval is on trial too."""
        waiting = self.pending.version if self.pending else None
        wanted = {
            "champion": self.champion,
            "last_green": self.last_green.champion if self.last_green else None,
            "challenger": waiting if waiting not in (None, self.champion) else self.challenger,
            "pilot": self.live.pilot if self.live else None,
            "edge": self.live.edge if self.live else None,
        }
        return {alias: version for alias, version in wanted.items() if version is not None}


def opponent(state: RolloutState, candidate: str) -> str:
    """Weights that a candidate has to beat: what is live, or what was before the candidate went live.

    "" where it was the first to be live, or nothing is.
    """
    lived = ["", *(release.checkpoint for release in state.releases)]
    return lived[lived.index(candidate) - 1] if candidate in lived else lived[-1]


class IllegalMove(InputError):
    """The state machine has no such move from here."""


# Replaying the log --------------------------------------------------------------------------------


def current_state(log: ReleaseLog, dataset: str) -> RolloutState:
    return replay(log.entries(), dataset)


def replay(entries: Iterable[ReleaseEntry], dataset: str) -> RolloutState:
    """State of `dataset` after `entries`. Raises IllegalMove where the log holds one."""
    own = (entry for entry in entries if entry.decision.dataset == dataset)
    return reduce(
        lambda state, entry: rest_on(advance(state, entry.decision), entry),
        own,
        RolloutState(dataset=dataset),
    )


def rest_on(state: RolloutState, entry: ReleaseEntry) -> RolloutState:
    """The state that `entry` led to, knowing that entry's hash."""
    known: dict[str, object] = {"head": entry.hash}
    if state.pending and entry.decision.action is Action.REQUEST:
        known["pending"] = state.pending.model_copy(update={"request": entry.hash})
    return state.model_copy(update=known)


def advance(state: RolloutState, decision: Decision) -> RolloutState:
    """State after one decision. Pure. Raises IllegalMove on a move that the machine does not have."""
    if decision.from_stage is not state.stage:
        raise _illegal(decision, f"the rollout is at {state.stage}")
    if decision.outcome is not _OUTCOME_OF_ACTION.get(decision.action):
        raise _illegal(decision, f"a verdict of {decision.outcome or 'nobody'} does not {decision.action}")
    if (state.live is None) is not (decision.action is Action.BOOTSTRAP):
        raise _illegal(
            decision, "a rollout starts with one bootstrap" if state.live else "nothing is live yet"
        )
    if decision.automatic and decision.action in _NEED_A_PERSON:
        raise _illegal(decision, f"{decision.actor} acts by itself and may not {decision.action}")
    return _MOVES[decision.action](state, decision)


def _bootstrap(state: RolloutState, decision: Decision) -> RolloutState:
    _require(decision.to_stage is Stage.PILOT, decision, "the first release starts the pilot")
    return _with_releases(state, (_release(decision),))


def _promote(state: RolloutState, decision: Decision) -> RolloutState:
    """One stage up; or, by the steady gate, a new champion in the stage that was reached."""
    live = state.releases[-1]
    is_climb = _require_upward(state, decision)
    _require_approval(state.pending, decision)
    promoted = _release(decision).model_copy(update={"pilot": live.pilot, "edge": live.edge})
    if is_climb and live.stage in (Stage.PILOT, Stage.EDGE):
        promoted = promoted.model_copy(update={str(live.stage): decision.version})
    # The same version one stage up is still the same release: what it replaced stays the way back.
    below = state.releases[:-1] if decision.version == live.champion else state.releases
    return _without_challenger(_with_releases(state, (*below, promoted)), decision.version)


def _require_upward(state: RolloutState, decision: Decision) -> bool:
    """Whether it is one stage up rather than a new champion; illegal when it is neither."""
    is_climb = CLIMB.index(decision.to_stage) == CLIMB.index(state.stage) + 1
    is_replacement = decision.to_stage is state.stage and decision.version != state.champion
    _require(is_climb or is_replacement, decision, "it is neither the next stage nor a new champion")
    return is_climb


def _require_approval(pending: Pending | None, decision: Decision) -> None:
    """What waits for people is not promoted around them, and an answer belongs to what was asked."""
    asked = pending is not None and (pending.version, pending.to_stage) == (
        decision.version,
        decision.to_stage,
    )
    fits = decision.request == (pending.request if pending and asked else None)
    _require(fits, decision, "its request for approval is another one" if asked else "nobody asked for it")
    if pending and asked:
        lacking = pending.terms.persons - len(pending.approved_by)
        _require(lacking <= 0, decision, f"it waits for the approval of {lacking} more")


def _stay(state: RolloutState, decision: Decision) -> RolloutState:
    _require(decision.to_stage is state.stage, decision, "it changes no stage")
    return state


def _hold(state: RolloutState, decision: Decision) -> RolloutState:
    """A newer verdict that is no PASS also ends a request for the same version."""
    stayed = _stay(state, decision)
    if decision.request is not None:
        _require_pending(state, decision)
    is_about_it = state.pending is not None and state.pending.version == decision.version
    return stayed.model_copy(update={"pending": None}) if is_about_it else stayed


def _fail(state: RolloutState, decision: Decision) -> RolloutState:
    return _without_challenger(_hold(state, decision), decision.version)


def _retrain(state: RolloutState, decision: Decision) -> RolloutState:
    _require(decision.version != state.champion, decision, "the champion cannot challenge itself")
    return _stay(state, decision).model_copy(update={"challenger": decision.version})


def _request(state: RolloutState, decision: Decision) -> RolloutState:
    """Ask people for a promotion; a newer request takes the place of an older one."""
    _require_upward(state, decision)
    _require(decision.terms is not None, decision, "it does not say what it needs")
    assert decision.terms is not None
    is_known = decision.terms.trainer_may_approve or bool(decision.terms.trainer)
    _require(is_known, decision, "whoever trained it may not approve it, and who did is unknown: train again")
    pending = Pending(
        version=decision.version,
        checkpoint=decision.checkpoint,
        snapshot=decision.snapshot,
        to_stage=decision.to_stage,
        verdict=decision.verdict or "",
        policy=decision.policy or "",
        terms=decision.terms,
    )
    return state.model_copy(update={"pending": pending})


def _approve(state: RolloutState, decision: Decision) -> RolloutState:
    pending = _require_pending(state, decision)
    _require(decision.to_stage is pending.to_stage, decision, f"the request is for {pending.to_stage}")
    _require(not pending.is_approved, decision, "it has its approvals already")
    _require_account(pending, decision)
    for before in pending.approved_by:
        _require(before.name != decision.actor, decision, f"{decision.actor} approved it already")
        is_same = bool(before.account) and before.account == decision.account
        _require(not is_same, decision, f"the account {decision.account} approved it already")
    is_trainer = bool(pending.terms.trainer) and pending.terms.trainer in (decision.account, decision.actor)
    by_trainer = is_trainer and not pending.terms.trainer_may_approve
    _require(not by_trainer, decision, f"{pending.terms.trainer} trained it and may not approve it")
    approver = Actor(name=decision.actor, account=decision.account)
    approved = pending.model_copy(update={"approved_by": (*pending.approved_by, approver)})
    return state.model_copy(update={"pending": approved})


def _decline(state: RolloutState, decision: Decision) -> RolloutState:
    _require_account(_require_pending(state, decision), decision)
    return _stay(state, decision).model_copy(update={"pending": None})


def _require_account(pending: Pending, decision: Decision) -> None:
    """A name alone cannot show that two persons are two, or that nobody is the trainer."""
    is_proven = bool(decision.account) or not pending.terms.needs_accounts
    _require(is_proven, decision, "its policy compares accounts: answer at the command line")


def _require_pending(state: RolloutState, decision: Decision) -> Pending:
    """The request that the decision answers."""
    pending = state.pending
    if pending is None or pending.request != decision.request or pending.version != decision.version:
        raise _illegal(decision, "no such request waits for approval")
    return pending


def _demote(state: RolloutState, decision: Decision) -> RolloutState:
    is_down = decision.to_stage in CLIMB[CLIMB.index(Stage.PILOT) : CLIMB.index(state.stage)]
    _require(is_down, decision, "a demotion leads to a lower stage, the pilot at the lowest")
    _require(decision.version == state.champion, decision, "only what is live can be demoted")
    demoted = state.releases[-1].model_copy(update={"stage": decision.to_stage})
    return _with_releases(state, (*state.releases[:-1], demoted))


def _rollback(state: RolloutState, decision: Decision) -> RolloutState:
    back = state.last_green
    _require(back is not None, decision, "there is no earlier release to go back to")
    fits = back is not None and (back.champion, back.stage) == (decision.version, decision.to_stage)
    _require(fits, decision, "a rollback leads to the last green release")
    return _without_challenger(_with_releases(state, state.releases[:-1]), decision.version)


_MOVES: dict[Action, Callable[[RolloutState, Decision], RolloutState]] = {
    Action.BOOTSTRAP: _bootstrap,
    Action.PROMOTE: _promote,
    Action.HOLD: _hold,
    Action.FAIL: _fail,
    Action.RETRAIN: _retrain,
    Action.REQUEST: _request,
    Action.APPROVE: _approve,
    Action.DECLINE: _decline,
    Action.DEMOTE: _demote,
    Action.ROLLBACK: _rollback,
}


def _release(decision: Decision) -> Release:
    return Release(
        stage=decision.to_stage,
        champion=decision.version,
        checkpoint=decision.checkpoint,
        snapshot=decision.snapshot,
    )


def _with_releases(state: RolloutState, releases: tuple[Release, ...]) -> RolloutState:
    """Something else is live, so a request that was judged against what was live before is void."""
    return state.model_copy(update={"releases": releases, "pending": None})


def _without_challenger(state: RolloutState, version: int) -> RolloutState:
    return state.model_copy(update={"challenger": None}) if state.challenger == version else state


def _require(fine: bool, decision: Decision, why: str) -> None:
    if not fine:
        raise _illegal(decision, why)


def _illegal(decision: Decision, why: str) -> IllegalMove:
    move = f"{decision.action} from {decision.from_stage} to {decision.to_stage}"
    return IllegalMove(f"{decision.dataset}: {move} of version {decision.version} is no legal move: {why}")
