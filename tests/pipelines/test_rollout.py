"""The rollout state machine: legal moves only, PASS alone promotes, every release can be taken back."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.decisions import apply_verdict, bootstrap, challenge, demote, rollback
from pipelines.release_log import Action, Decision, ReleaseLog, Stage, StaleDecision
from pipelines.rollout import IllegalMove, RolloutState, advance, current_state, replay
from tests.release_cases import ADA, DATASET, MONITOR, climbed, log_in, started, verdict, version
from validation.errors import InputError
from validation.gates import Outcome, Verdict

PROPER = {Action.PROMOTE: Outcome.PASS, Action.HOLD: Outcome.HOLD, Action.FAIL: Outcome.FAIL}
STAGES = [Stage.NONE, Stage.PILOT, Stage.TRAINING, Stage.EDGE, Stage.STEADY]


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


class Rollouts(RuleBasedStateMachine):
    """Random moves, legal and not, on the machine, beside a list of what was live that is kept by hand."""

    LEGAL_STEPS = (
        {(Action.BOOTSTRAP, Stage.NONE, Stage.PILOT)}
        | {(Action.PROMOTE, low, high) for low, high in pairwise(STAGES[1:])}
        | {(Action.PROMOTE, stage, stage) for stage in STAGES[1:]}
        | {(action, stage, stage) for action in ("hold", "fail", "retrain") for stage in STAGES[1:]}
        | {(Action.DEMOTE, high, low) for high in STAGES[1:] for low in STAGES[1 : STAGES.index(high)]}
        | {(Action.ROLLBACK, high, low) for high in STAGES[1:] for low in STAGES[1:]}
    )

    def __init__(self) -> None:
        super().__init__()
        self.state = RolloutState(dataset=DATASET)
        self.live: list[tuple[Stage, int]] = []  # (stage, version), newest last
        self.entries: list[Decision] = []

    @rule(
        action=st.sampled_from(list(Action)),
        from_stage=st.none() | st.sampled_from(STAGES),
        to_stage=st.sampled_from(STAGES),
        number=st.integers(1, 4),
        outcome=st.none() | st.sampled_from(list(Outcome)),
    )
    def try_anything(
        self, action: Action, from_stage: Stage | None, to_stage: Stage, number: int, outcome: Outcome | None
    ) -> None:
        chosen = Decision(
            dataset=DATASET,
            action=action,
            from_stage=from_stage or self.state.stage,
            to_stage=to_stage,
            version=number,
            checkpoint=f"weights {number}",
            snapshot="data",
            actor="ada",
            reason="why",
            outcome=outcome,
        )
        self.decide(chosen)

    # Blind moves are mostly illegal; these are likely ones, so that long rollouts are reached.

    @initialize(number=st.integers(1, 4))
    def bootstrap(self, number: int) -> None:
        self.try_anything(Action.BOOTSTRAP, None, Stage.PILOT, number, None)

    @rule(number=st.none() | st.integers(1, 4), climbs=st.booleans())
    def promote(self, number: int | None, climbs: bool) -> None:
        stage, champion = self.live[-1]
        higher = STAGES[min(STAGES.index(stage) + climbs, len(STAGES) - 1)]
        self.try_anything(Action.PROMOTE, stage, higher, number or champion, Outcome.PASS)

    @rule(number=st.integers(1, 4))
    def retrain(self, number: int) -> None:
        self.try_anything(Action.RETRAIN, None, self.live[-1][0], number, None)

    @rule(to_stage=st.sampled_from(STAGES))
    def demote(self, to_stage: Stage) -> None:
        self.try_anything(Action.DEMOTE, None, to_stage, self.live[-1][1], None)

    @precondition(lambda self: len(self.live) > 1)
    @rule(to_stage=st.none() | st.sampled_from(STAGES))
    def roll_back(self, to_stage: Stage | None) -> None:
        stage, number = self.live[-2]
        self.try_anything(Action.ROLLBACK, None, to_stage or stage, number, None)

    def decide(self, chosen: Decision) -> None:
        expected = self.expected(chosen)
        try:
            after = advance(self.state, chosen)
        except IllegalMove:
            assert expected is None, f"legal, but refused: {chosen}"
            return
        assert expected is not None, f"illegal, but taken: {chosen}"
        self.state, self.live = after, expected
        self.entries.append(chosen)

    def expected(self, chosen: Decision) -> list[tuple[Stage, int]] | None:
        """What should be live after the decision; None where it is illegal."""
        stage, champion = self.live[-1] if self.live else (Stage.NONE, 0)
        step = (chosen.action, chosen.from_stage, chosen.to_stage)
        fits = chosen.from_stage is stage and chosen.outcome is PROPER.get(chosen.action)
        if not fits or step not in self.LEGAL_STEPS:
            return None
        reached = (chosen.to_stage, chosen.version)
        match chosen.action:
            case Action.BOOTSTRAP:
                return [reached]
            case Action.PROMOTE if chosen.version == champion:
                return None if chosen.to_stage is stage else [*self.live[:-1], reached]
            case Action.PROMOTE:
                return [*self.live, reached]
            case Action.RETRAIN:
                return None if chosen.version == champion else self.live
            case Action.DEMOTE:
                return [*self.live[:-1], reached] if chosen.version == champion else None
            case Action.ROLLBACK:
                return self.live[:-1] if self.live[-2:-1] == [reached] else None
            case _:
                return self.live

    @invariant()
    def what_is_live_is_what_was_let_in(self) -> None:
        assert [(release.stage, release.champion) for release in self.state.releases] == self.live
        assert self.state.aliases().get("champion") == (self.live[-1][1] if self.live else None)
        assert self.state.aliases().get("last_green") == (self.live[-2][1] if self.live[1:] else None)
        assert self.state.challenger is None or self.state.challenger != self.state.champion

    @invariant()
    def there_is_one_champion_as_soon_as_anything_was_released(self) -> None:
        assert bool(self.entries) == (self.state.champion is not None)

    def teardown(self) -> None:
        again = RolloutState(dataset=DATASET)
        for chosen in self.entries:
            again = advance(again, chosen)
        assert again == self.state
        assert replay([], DATASET).stage is Stage.NONE


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
