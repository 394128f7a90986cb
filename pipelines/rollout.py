"""The rollout as a state machine: none -> pilot -> training -> edge -> steady, and back.

The release log is the truth. A state is what replaying it gives; every change is one legal, logged
decision; MLflow's aliases are made to agree with it by `reconcile`.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce

from pipelines.files import exclusive_lock
from pipelines.registry import ModelVersion, Tracker, registered_name
from pipelines.release_log import GENESIS, Action, Decision, ReleaseEntry, ReleaseLog, Stage
from validation.errors import InputError
from validation.gates import Outcome, Verdict
from validation.record import Record

CLIMB = (Stage.NONE, Stage.PILOT, Stage.TRAINING, Stage.EDGE, Stage.STEADY)
ALIASES = ("champion", "last_green", "challenger", "pilot", "edge")
_OUTCOME_OF_ACTION = {Action.PROMOTE: Outcome.PASS, Action.HOLD: Outcome.HOLD, Action.FAIL: Outcome.FAIL}
_ACTION_OF_OUTCOME = {outcome: action for action, outcome in _OUTCOME_OF_ACTION.items()}


class Release(Record):
    """What was live: the stage reached with it, its version, and the pilot and edge versions then."""

    stage: Stage
    champion: int
    checkpoint: str
    snapshot: str
    pilot: int | None = None
    edge: int | None = None


class RolloutState(Record):
    """Where a dataset's rollout stands.

    `releases` is the way back: the last is live, the one below it last green. `head` is the hash of the
    log entry that it rests on; a decision made on it is refused once there is a newer one.
    """

    dataset: str
    releases: tuple[Release, ...] = ()
    challenger: int | None = None
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
        """The registry aliases that say the same, champion first."""
        wanted = {
            "champion": self.champion,
            "last_green": self.last_green.champion if self.last_green else None,
            "challenger": self.challenger,
            "pilot": self.live.pilot if self.live else None,
            "edge": self.live.edge if self.live else None,
        }
        return {alias: version for alias, version in wanted.items() if version is not None}


class IllegalMove(InputError):
    """The state machine has no such move from here."""


class AliasChange(Record):
    """One alias that disagreed with the release log and was put right."""

    model: str
    alias: str
    was: int | None
    now: int | None


# Replaying the log --------------------------------------------------------------------------------


def replay(entries: Iterable[ReleaseEntry], dataset: str) -> RolloutState:
    """State of `dataset` after `entries`. Raises IllegalMove where the log holds one."""
    own = (entry for entry in entries if entry.decision.dataset == dataset)
    return reduce(
        lambda state, entry: advance(state, entry.decision).model_copy(update={"head": entry.hash}),
        own,
        RolloutState(dataset=dataset),
    )


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
    return _MOVES[decision.action](state, decision)


def _bootstrap(state: RolloutState, decision: Decision) -> RolloutState:
    _require(decision.to_stage is Stage.PILOT, decision, "the first release starts the pilot")
    return _with_releases(state, (_release(decision),))


def _promote(state: RolloutState, decision: Decision) -> RolloutState:
    """One stage up; or, by the steady gate, a new champion in the stage that was reached."""
    live = state.releases[-1]
    is_climb = CLIMB.index(decision.to_stage) == CLIMB.index(live.stage) + 1
    is_replacement = decision.to_stage is live.stage and decision.version != live.champion
    _require(is_climb or is_replacement, decision, "it is neither the next stage nor a new champion")
    promoted = _release(decision).model_copy(update={"pilot": live.pilot, "edge": live.edge})
    if is_climb and live.stage in (Stage.PILOT, Stage.EDGE):
        promoted = promoted.model_copy(update={str(live.stage): decision.version})
    # The same version one stage up is still the same release: what it replaced stays the way back.
    below = state.releases[:-1] if decision.version == live.champion else state.releases
    return _without_challenger(_with_releases(state, (*below, promoted)), decision.version)


def _stay(state: RolloutState, decision: Decision) -> RolloutState:
    _require(decision.to_stage is state.stage, decision, "it changes no stage")
    return state


def _fail(state: RolloutState, decision: Decision) -> RolloutState:
    return _without_challenger(_stay(state, decision), decision.version)


def _retrain(state: RolloutState, decision: Decision) -> RolloutState:
    _require(decision.version != state.champion, decision, "the champion cannot challenge itself")
    return _stay(state, decision).model_copy(update={"challenger": decision.version})


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
    Action.HOLD: _stay,
    Action.FAIL: _fail,
    Action.RETRAIN: _retrain,
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
    return state.model_copy(update={"releases": releases})


def _without_challenger(state: RolloutState, version: int) -> RolloutState:
    return state.model_copy(update={"challenger": None}) if state.challenger == version else state


def _require(fine: bool, decision: Decision, why: str) -> None:
    if not fine:
        raise _illegal(decision, why)


def _illegal(decision: Decision, why: str) -> IllegalMove:
    move = f"{decision.action} from {decision.from_stage} to {decision.to_stage}"
    return IllegalMove(f"{decision.dataset}: {move} of version {decision.version} is no legal move: {why}")


# Deciding -----------------------------------------------------------------------------------------


def current_state(log: ReleaseLog, dataset: str) -> RolloutState:
    return replay(log.entries(), dataset)


def bootstrap(
    log: ReleaseLog, state: RolloutState, first: ModelVersion, actor: str, reason: str
) -> RolloutState:
    """Put the first model live by a person's explicit word; starts the pilot."""
    return _record(log, state, _about(state, first, Action.BOOTSTRAP, Stage.PILOT, actor, reason))


def apply_verdict(
    log: ReleaseLog, state: RolloutState, candidate: ModelVersion, verdict: Verdict, actor: str
) -> RolloutState:
    """Record what the gate said of `candidate`: PASS promotes, HOLD holds, FAIL fails.

    The verdict of the stage that was reached climbs to the next one; the steady gate's replaces the champion.
    Raises InputError where the verdict is about something else than this candidate, stage or champion.
    """
    _refuse_foreign(verdict, state, candidate)
    action = _ACTION_OF_OUTCOME[verdict.outcome]
    to_stage = _next_stage(state.stage, verdict) if action is Action.PROMOTE else state.stage
    reason = "; ".join(verdict.reasons) or f"every required check of the {verdict.stage} gate passed"
    plain = _about(state, candidate, action, to_stage, actor, reason)
    evidence = {"outcome": verdict.outcome, "verdict": verdict.digest(), "policy": verdict.policy_digest}
    return _record(log, state, plain.model_copy(update=evidence))


def challenge(
    log: ReleaseLog, state: RolloutState, challenger: ModelVersion, actor: str, reason: str
) -> RolloutState:
    """Record a retrained model as challenger of what is live."""
    return _record(log, state, _about(state, challenger, Action.RETRAIN, state.stage, actor, reason))


def demote(log: ReleaseLog, state: RolloutState, to_stage: Stage, actor: str, reason: str) -> RolloutState:
    """Take the rollout back to a lower stage; what is live stays live."""
    live = state.live or _nothing_live(state)
    return _record(log, state, _about_release(state, live, Action.DEMOTE, to_stage, actor, reason))


def rollback(log: ReleaseLog, state: RolloutState, actor: str, reason: str) -> RolloutState:
    """Put the last green release back live, in the stage it had reached. Needs the log alone."""
    back = state.last_green or _nothing_live(state)
    return _record(log, state, _about_release(state, back, Action.ROLLBACK, back.stage, actor, reason))


def _record(log: ReleaseLog, state: RolloutState, decision: Decision) -> RolloutState:
    if not decision.reason.strip():
        raise InputError(f"{state.dataset}: {decision.action} needs a reason; say why in one line")
    after = advance(state, decision)
    entry = log.append(decision, expected_head=state.head)
    return after.model_copy(update={"head": entry.hash})


def _about(
    state: RolloutState, version: ModelVersion, action: Action, to_stage: Stage, actor: str, reason: str
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
        actor=actor,
        reason=reason,
    )


def _about_release(
    state: RolloutState, release: Release, action: Action, to_stage: Stage, actor: str, reason: str
) -> Decision:
    version = ModelVersion(
        name=registered_name(state.dataset),
        version=release.champion,
        checkpoint=release.checkpoint,
        snapshot=release.snapshot,
    )
    return _about(state, version, action, to_stage, actor, reason)


def _nothing_live(state: RolloutState) -> Release:
    raise InputError(f"{state.dataset}: there is no such release; see the history")


def _next_stage(stage: Stage, verdict: Verdict) -> Stage:
    return stage if verdict.stage == Stage.STEADY else CLIMB[CLIMB.index(stage) + 1]


def _refuse_foreign(verdict: Verdict, state: RolloutState, candidate: ModelVersion) -> None:
    if verdict.stage not in (state.stage, Stage.STEADY):
        raise InputError(f"{state.dataset}: a {verdict.stage} verdict decides nothing at stage {state.stage}")
    if verdict.evidence.checkpoint != candidate.checkpoint:
        raise InputError(
            f"{state.dataset}: the verdict is not about version {candidate.version}'s checkpoint"
        )
    champion, live = (
        verdict.evidence.references.get("champion"),
        state.live.checkpoint if state.live else None,
    )
    # A HOLD may say that the champion could not be scored; a PASS may not.
    is_lacking = champion is None and (verdict.outcome is not Outcome.PASS or verdict.stage != Stage.STEADY)
    if not is_lacking and champion != live:
        raise InputError(f"{state.dataset}: the verdict compared with another champion; judge again")


# Making MLflow agree ------------------------------------------------------------------------------


def reconcile(log: ReleaseLog, tracker: Tracker) -> list[AliasChange]:
    """Make the registry's aliases say what the release log says; the changes made, none when they agreed.

    Run it at every start and after every decision: it is the only writer of these aliases, so a crash
    between log and registry leaves nothing that the next start does not put right. Raises InputError when
    the log lost entries that the registry has seen, or a version that should carry an alias is gone.
    """
    # Under one lock, and reading the log inside it, the last to run has always seen the newest entry.
    with exclusive_lock(log.path.with_name(f"{log.path.name}.reconcile.lock")):
        entries = log.entries()
        datasets = sorted({entry.decision.dataset for entry in entries})
        return [change for dataset in datasets for change in _reconcile_one(entries, dataset, tracker)]


def _reconcile_one(entries: list[ReleaseEntry], dataset: str, tracker: Tracker) -> list[AliasChange]:
    model, state = registered_name(dataset), replay(entries, dataset)
    seen = tracker.release_head(model)
    if seen and all(entry.hash != seen for entry in entries):
        lost = f"the registry has seen release {seen[:12]}, which the release log has not"
        raise InputError(f"{model}: {lost}; restore the log from a backup")
    changes = _differences(model, tracker.aliases(model), state.aliases())
    for change in changes:
        if change.now is None:
            tracker.delete_alias(model, change.alias)
        else:
            tracker.set_alias(model, change.alias, change.now)
    if seen != state.head:
        tracker.note_release_head(model, state.head)
    return changes


def _differences(model: str, present: Mapping[str, int], wanted: Mapping[str, int]) -> list[AliasChange]:
    return [
        AliasChange(model=model, alias=alias, was=present.get(alias), now=wanted.get(alias))
        for alias in ALIASES
        if present.get(alias) != wanted.get(alias)
    ]
