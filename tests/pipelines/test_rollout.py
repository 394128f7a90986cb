"""The rollout state machine: legal moves only, PASS alone promotes, every release can be taken back."""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.decisions import apply_verdict, bootstrap, challenge, demote, rollback
from pipelines.release_log import Action, ApprovalTerms, Decision, ReleaseLog, Stage, StaleDecision
from pipelines.rollout import IllegalMove, RolloutState, advance, current_state, replay
from tests.release_cases import ADA, DATASET, MONITOR, climbed, log_in, started, verdict, version
from validation.errors import InputError
from validation.gates import Outcome, Verdict

PROPER = {
    Action.PROMOTE: Outcome.PASS,
    Action.REQUEST: Outcome.PASS,
    Action.HOLD: Outcome.HOLD,
    Action.FAIL: Outcome.FAIL,
}
STAGES = [Stage.NONE, Stage.PILOT, Stage.TRAINING, Stage.EDGE, Stage.STEADY]
UPWARD = [*pairwise(STAGES[1:]), *((stage, stage) for stage in STAGES[1:])]
STAYING = ("hold", "fail", "retrain", "decline")
FOR_PERSONS = (Action.BOOTSTRAP, Action.PROMOTE, Action.APPROVE, Action.DECLINE)
TERMS = st.builds(
    ApprovalTerms,
    persons=st.integers(1, 2),
    expires=st.just("2999-01-01T00:00:00+00:00"),
    trainer=st.sampled_from(["", "cleo"]),
    trainer_may_approve=st.booleans(),
)


@pytest.fixture
def log(tmp_path: Path) -> ReleaseLog:
    return log_in(tmp_path)


def test_the_way_up_ends_steady_and_the_log_tells_it_again(log: ReleaseLog) -> None:
    state = climbed(log)
    assert state.stage is Stage.STEADY
    assert state.aliases() == {"champion": 3, "last_green": 2, "pilot": 2, "edge": 3}
    assert current_state(log, DATASET) == state
    actions = [(entry.decision.action, entry.decision.to_stage) for entry in log.entries()]
    assert actions == [
        (Action.BOOTSTRAP, Stage.PILOT),
        (Action.PROMOTE, Stage.TRAINING),
        (Action.PROMOTE, Stage.EDGE),
        (Action.PROMOTE, Stage.STEADY),
    ]


def test_a_promotion_carries_its_evidence(log: ReleaseLog) -> None:
    said = verdict("pilot", 2)
    apply_verdict(log, started(log), version(2), said, ADA)
    entry = log.entries()[-1].decision
    assert (entry.verdict, entry.policy, entry.outcome) == (said.digest(), "policy", Outcome.PASS)
    assert (entry.checkpoint, entry.snapshot, entry.actor) == ("weights 2", "data", "ada")


@pytest.mark.parametrize("outcome", [Outcome.HOLD, Outcome.FAIL])
@pytest.mark.parametrize("stage", ["pilot", "steady"])
def test_only_pass_promotes(log: ReleaseLog, outcome: Outcome, stage: str) -> None:
    state = started(log)
    after = apply_verdict(log, state, version(2), verdict(stage, 2, outcome), ADA)
    assert (after.stage, after.aliases()) == (state.stage, state.aliases())
    assert log.entries()[-1].decision.action == outcome.lower()


def test_a_promotion_without_a_pass_cannot_even_be_written_by_hand(log: ReleaseLog) -> None:
    state = started(log)
    by_hand = Decision(
        dataset=DATASET,
        action=Action.PROMOTE,
        from_stage=Stage.PILOT,
        to_stage=Stage.TRAINING,
        version=2,
        checkpoint="weights 2",
        snapshot="data",
        actor="eve",
        reason="trust me",
        outcome=Outcome.HOLD,
    )
    with pytest.raises(IllegalMove, match="a verdict of HOLD does not promote"):
        advance(state, by_hand)
    log.append(by_hand, state.head)
    with pytest.raises(IllegalMove):
        current_state(log, DATASET)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (verdict("pilot", 5), "not about version 2"),
        (verdict("training", 2), "decides nothing at stage pilot"),
        (verdict("edge", 2), "decides nothing at stage pilot"),
        (verdict("steady", 2), "another champion"),
        (verdict("steady", 2, champion=9), "another champion"),
        (verdict("pilot", 2, champion=9), "another champion"),
        (verdict("steady", 2, Outcome.HOLD, champion=9), "another champion"),
    ],
)
def test_a_verdict_about_something_else_is_refused(log: ReleaseLog, wrong: Verdict, message: str) -> None:
    state = started(log)
    with pytest.raises(InputError, match=message):
        apply_verdict(log, state, version(2), wrong, ADA)
    assert current_state(log, DATASET) == state


def test_the_first_release_needs_a_reason_and_happens_once(log: ReleaseLog) -> None:
    nothing = current_state(log, DATASET)
    with pytest.raises(InputError, match="needs a reason"):
        bootstrap(log, nothing, version(1), ADA, "  ")
    with pytest.raises(InputError, match="nothing is live yet"):
        challenge(log, nothing, version(1), MONITOR, "drift")
    with pytest.raises(InputError, match="another dataset's model"):
        bootstrap(log, nothing, version(1, "etth1"), ADA, "first")
    with pytest.raises(IllegalMove, match="starts with one bootstrap"):
        bootstrap(log, started(log), version(2), ADA, "again")
    assert len(log.entries()) == 1


def test_a_challenger_that_passes_the_steady_gate_replaces_the_champion(log: ReleaseLog) -> None:
    state = challenge(log, climbed(log), version(4), MONITOR, "drift in dep_delay")
    assert state.aliases()["challenger"] == 4
    assert state.champion == 3
    state = apply_verdict(log, state, version(4), verdict("steady", 4, champion=3), ADA)
    assert state.stage is Stage.STEADY
    assert state.aliases() == {"champion": 4, "last_green": 3, "pilot": 2, "edge": 3}


def test_a_challenger_that_fails_is_dropped_and_one_on_hold_stays(log: ReleaseLog) -> None:
    state = challenge(log, climbed(log), version(4), MONITOR, "drift")
    state = apply_verdict(log, state, version(4), verdict("steady", 4, Outcome.HOLD), ADA)
    assert state.challenger == 4
    state = apply_verdict(log, state, version(4), verdict("steady", 4, Outcome.FAIL, champion=3), ADA)
    assert state.challenger is None


def test_a_climb_that_stopped_early_still_lets_a_better_champion_in_without_climbing(log: ReleaseLog) -> None:
    state = apply_verdict(log, started(log), version(2), verdict("pilot", 2, Outcome.FAIL), ADA)
    state = apply_verdict(log, state, version(5), verdict("steady", 5, champion=1), ADA)
    assert (state.stage, state.champion) == (Stage.PILOT, 5)


def test_rollbacks_go_back_release_by_release_and_no_further_than_the_first(log: ReleaseLog) -> None:
    state = climbed(log)
    seen = []
    while state.last_green:
        state = rollback(log, state, ADA, "p99 latency")
        seen.append((state.stage, state.aliases()))
    assert seen == [
        (Stage.TRAINING, {"champion": 2, "last_green": 1, "pilot": 2}),
        (Stage.PILOT, {"champion": 1}),
    ]
    with pytest.raises(InputError, match="no earlier release to go back to: version 1 is the first"):
        rollback(log, state, ADA, "once more")


def test_a_demotion_leads_down_and_keeps_what_is_live(log: ReleaseLog) -> None:
    state = demote(log, climbed(log), Stage.TRAINING, ADA, "the device profile changed")
    assert (state.stage, state.champion) == (Stage.TRAINING, 3)
    for stage in (Stage.NONE, Stage.TRAINING, Stage.EDGE, Stage.STEADY):
        with pytest.raises(IllegalMove, match="a demotion leads to a lower stage"):
            demote(log, state, stage, ADA, "why not")


def test_a_decision_on_an_older_state_is_refused_and_leaves_no_trace(log: ReleaseLog) -> None:
    before = started(log)
    after = apply_verdict(log, before, version(2), verdict("pilot", 2), ADA)
    with pytest.raises(StaleDecision):
        apply_verdict(log, before, version(3), verdict("pilot", 3), ADA)
    assert current_state(log, DATASET) == after


def test_datasets_do_not_touch_each_other(log: ReleaseLog) -> None:
    state = climbed(log)
    bootstrap(log, current_state(log, "etth1"), version(1, "etth1"), ADA, "first")
    assert current_state(log, DATASET) == state
    assert current_state(log, "etth1").aliases() == {"champion": 1}


class Asked(NamedTuple):
    """A request for approval, as the test remembers it."""

    number: int
    to_stage: Stage
    persons: int
    trainer: str | None
    token: str
    needs_accounts: bool
    approved_by: tuple[str, ...] = ()


class Rollouts(RuleBasedStateMachine):
    """Random moves, legal and not, on the machine, beside what should be live and wait, kept by hand."""

    LEGAL_STEPS = (
        {(Action.BOOTSTRAP, Stage.NONE, Stage.PILOT)}
        | {(action, low, high) for action in ("promote", "request", "approve") for low, high in UPWARD}
        | {(action, stage, stage) for action in STAYING for stage in STAGES[1:]}
        | {(Action.DEMOTE, high, low) for high in STAGES[1:] for low in STAGES[1 : STAGES.index(high)]}
        | {(Action.ROLLBACK, high, low) for high in STAGES[1:] for low in STAGES[1:]}
    )

    def __init__(self) -> None:
        super().__init__()
        self.state = RolloutState(dataset=DATASET)
        self.live: list[tuple[Stage, int]] = []  # (stage, version), newest last
        self.asked: Asked | None = None
        self.taken: list[tuple[Decision, str]] = []  # with the token that a request was given

    @rule(
        action=st.sampled_from(list(Action)),
        from_stage=st.none() | st.sampled_from(STAGES),
        to_stage=st.sampled_from(STAGES),
        number=st.integers(1, 4),
        outcome=st.none() | st.sampled_from(list(Outcome)),
        automatic=st.booleans(),
        request=st.none() | st.just("another request"),
        terms=st.none() | TERMS,
    )
    def try_anything(
        self,
        action: Action,
        from_stage: Stage | None,
        to_stage: Stage,
        number: int,
        outcome: Outcome | None,
        automatic: bool = False,
        request: str | None = None,
        terms: ApprovalTerms | None = None,
        actor: str = "ada",
        account: str | None = None,
    ) -> None:
        chosen = Decision(
            dataset=DATASET,
            action=action,
            from_stage=from_stage or self.state.stage,
            to_stage=to_stage,
            version=number,
            checkpoint=f"weights {number}",
            snapshot="data",
            actor=actor,
            account=actor if account is None else account,
            automatic=automatic,
            reason="why",
            outcome=outcome,
            request=request,
            terms=terms,
        )
        self.decide(chosen)

    # Blind moves are mostly illegal; these are likely ones, so that long rollouts are reached.

    @initialize(number=st.integers(1, 4))
    def bootstrap(self, number: int) -> None:
        self.try_anything(Action.BOOTSTRAP, None, Stage.PILOT, number, None)

    @rule(
        number=st.none() | st.integers(1, 4),
        climbs=st.booleans(),
        request=st.sampled_from([None, None, None, "another request"]),
    )
    def promote(self, number: int | None, climbs: bool, request: str | None) -> None:
        number, stage = number or self.live[-1][1], self.higher(climbs)
        self.try_anything(Action.PROMOTE, None, stage, number, Outcome.PASS, request=request)

    @rule(number=st.none() | st.integers(1, 4), climbs=st.booleans(), terms=TERMS)
    def ask(self, number: int | None, climbs: bool, terms: ApprovalTerms) -> None:
        champion = self.live[-1][1]
        self.try_anything(
            Action.REQUEST, None, self.higher(climbs), number or champion, Outcome.PASS, terms=terms
        )

    @precondition(lambda self: self.asked)
    @rule(
        action=st.sampled_from([Action.APPROVE, Action.APPROVE, Action.PROMOTE, Action.DECLINE, Action.FAIL]),
        actor=st.sampled_from(["ada", "bob", "cleo"]),
        automatic=st.sampled_from([False, False, False, True]),
        account=st.sampled_from([None, None, ""]),
    )
    def answer(self, action: Action, actor: str, automatic: bool, account: str | None) -> None:
        asked = self.asked
        assert asked is not None
        to_stage = asked.to_stage if action in (Action.APPROVE, Action.PROMOTE) else self.live[-1][0]
        outcome = PROPER.get(action)
        self.try_anything(
            action, None, to_stage, asked.number, outcome, automatic, asked.token, None, actor, account
        )

    @rule(number=st.integers(1, 4))
    def retrain(self, number: int) -> None:
        self.try_anything(Action.RETRAIN, None, self.live[-1][0], number, None)

    @rule(to_stage=st.sampled_from(STAGES))
    def demote(self, to_stage: Stage) -> None:
        self.try_anything(Action.DEMOTE, None, to_stage, self.live[-1][1], None, automatic=True)

    @precondition(lambda self: len(self.live) > 1)
    @rule(to_stage=st.none() | st.sampled_from(STAGES))
    def roll_back(self, to_stage: Stage | None) -> None:
        stage, number = self.live[-2]
        self.try_anything(Action.ROLLBACK, None, to_stage or stage, number, None, automatic=True)

    def higher(self, climbs: bool) -> Stage:
        return STAGES[min(STAGES.index(self.live[-1][0]) + climbs, len(STAGES) - 1)]

    def decide(self, chosen: Decision) -> None:
        expected = self.expected(chosen)
        try:
            after = advance(self.state, chosen)
        except IllegalMove:
            assert expected is None, f"legal, but refused: {chosen}"
            return
        assert expected is not None, f"illegal, but taken: {chosen}"
        token = f"request {len(self.taken)}"
        self.state, self.live = named(after, chosen, token), expected
        self.asked = self.waits_after(chosen, token)
        self.taken.append((chosen, token))

    def expected(self, chosen: Decision) -> list[tuple[Stage, int]] | None:
        """What should be live after the decision; None where it is illegal."""
        stage, champion = self.live[-1] if self.live else (Stage.NONE, 0)
        step = (chosen.action, chosen.from_stage, chosen.to_stage)
        fits = chosen.from_stage is stage and chosen.outcome is PROPER.get(chosen.action)
        if not fits or step not in self.LEGAL_STEPS or (chosen.automatic and chosen.action in FOR_PERSONS):
            return None
        reached = (chosen.to_stage, chosen.version)
        match chosen.action:
            case Action.BOOTSTRAP:
                return [reached]
            case Action.PROMOTE | Action.REQUEST if reached == (stage, champion):
                return None
            case Action.PROMOTE if not self.may_promote(chosen):
                return None
            case Action.PROMOTE:
                return [*self.live[: -1 if chosen.version == champion else None], reached]
            case Action.REQUEST:
                is_known = chosen.terms and (chosen.terms.trainer or chosen.terms.trainer_may_approve)
                return self.live if is_known else None
            case Action.APPROVE:
                return self.live if self.may_approve(chosen) else None
            case Action.DECLINE:
                return self.live if self.is_about_asked(chosen) and self.is_proven(chosen) else None
            case Action.HOLD | Action.FAIL:
                return self.live if chosen.request is None or self.is_about_asked(chosen) else None
            case Action.RETRAIN:
                return None if chosen.version == champion else self.live
            case Action.DEMOTE:
                return [*self.live[:-1], reached] if chosen.version == champion else None
            case Action.ROLLBACK:
                return self.live[:-1] if self.live[-2:-1] == [reached] else None

    def is_about_asked(self, chosen: Decision) -> bool:
        return self.asked is not None and (self.asked.number, self.asked.token) == (
            chosen.version,
            chosen.request,
        )

    def is_proven(self, chosen: Decision) -> bool:
        return bool(chosen.account) or not (self.asked and self.asked.needs_accounts)

    def may_promote(self, chosen: Decision) -> bool:
        asked = self.asked
        if asked and (asked.number, asked.to_stage) == (chosen.version, chosen.to_stage):
            return chosen.request == asked.token and len(asked.approved_by) == asked.persons
        return chosen.request is None

    def may_approve(self, chosen: Decision) -> bool:
        asked = self.asked
        if asked is None or not self.is_about_asked(chosen) or chosen.to_stage is not asked.to_stage:
            return False
        is_new = chosen.actor not in (*asked.approved_by, asked.trainer)
        return is_new and len(asked.approved_by) < asked.persons and self.is_proven(chosen)

    def waits_after(self, chosen: Decision, token: str) -> Asked | None:
        asked = self.asked
        match chosen.action:
            case Action.REQUEST:
                terms = chosen.terms
                assert terms is not None
                trainer = None if terms.trainer_may_approve else terms.trainer
                needs_accounts = terms.persons == 2 or not terms.trainer_may_approve
                return Asked(chosen.version, chosen.to_stage, terms.persons, trainer, token, needs_accounts)
            case Action.APPROVE if asked:
                return asked._replace(approved_by=(*asked.approved_by, chosen.actor))
            case Action.RETRAIN:
                return asked
            case Action.HOLD | Action.FAIL if asked and asked.number != chosen.version:
                return asked
            case _:
                return None

    @invariant()
    def what_is_live_is_what_was_let_in(self) -> None:
        assert [(release.stage, release.champion) for release in self.state.releases] == self.live
        assert self.state.aliases().get("champion") == (self.live[-1][1] if self.live else None)
        assert self.state.aliases().get("last_green") == (self.live[-2][1] if self.live[1:] else None)
        assert self.state.challenger is None or self.state.challenger != self.state.champion

    @invariant()
    def what_waits_is_what_was_asked(self) -> None:
        pending = self.state.pending
        assert (pending and pending.request) == (self.asked and self.asked.token)
        if pending and self.asked:
            assert tuple(each.name for each in pending.approved_by) == self.asked.approved_by

    @invariant()
    def there_is_one_champion_as_soon_as_anything_was_released(self) -> None:
        assert bool(self.taken) == (self.state.champion is not None)

    def teardown(self) -> None:
        again = RolloutState(dataset=DATASET)
        for chosen, token in self.taken:
            again = named(advance(again, chosen), chosen, token)
        assert again == self.state
        assert replay([], DATASET).stage is Stage.NONE


def named(state: RolloutState, chosen: Decision, token: str) -> RolloutState:
    """As the log would name a request: by its entry's hash."""
    if state.pending is None or chosen.action is not Action.REQUEST:
        return state
    return state.model_copy(update={"pending": state.pending.model_copy(update={"request": token})})


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
