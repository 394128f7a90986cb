"""People answer requests: named, in time, as many as the policy says; only what still passes goes live."""

import os
import re
from pathlib import Path

import pytest

from pipelines.actors import Actor, account_name, automatic, person
from pipelines.approvals import approve, conclude, decline, find_request
from pipelines.decisions import apply_verdict, bootstrap, rollback, terms_of
from pipelines.release_log import Action, ReleaseLog, Stage
from pipelines.rollout import IllegalMove, Pending, RolloutState, current_state
from tests.release_cases import (
    ADA,
    BOB,
    DATASET,
    MONITOR,
    climbed,
    log_at,
    log_in,
    started,
    verdict,
    version,
)
from validation.errors import InputError
from validation.gates import Outcome, Verdict
from validation.policy import Approval

CLEO = Actor(name="cleo", account="cleo")


@pytest.fixture(params=["file", "postgresql"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> ReleaseLog:
    """The same log on either back end."""
    if request.param == "file":
        return log_in(tmp_path)
    from tests.postgres import new_database

    return log_at(new_database(request.getfixturevalue("postgres")), tmp_path)


@pytest.fixture
def file_log(tmp_path: Path) -> ReleaseLog:
    return log_in(tmp_path)


def asked(
    log: ReleaseLog, persons: int = 1, trainer: str = "", may_approve: bool = True, hours: float = 1
) -> RolloutState:
    """Version 2 passed the pilot gate and waits for people."""
    approval = Approval.model_validate(
        {"approvers": persons, "trainer_may_approve": may_approve, "expires_hours": hours}
    )
    terms = terms_of(approval, trainer)
    return apply_verdict(log, started(log), version(2), verdict("pilot", 2), ADA, terms)


def passes(pending: Pending) -> Verdict:
    assert pending.version == 2
    return verdict("pilot", 2)


def never_asked(_: Pending) -> Verdict:
    raise AssertionError("nothing may be judged yet")


def test_a_pass_that_needs_approval_changes_nothing_until_a_named_person_agrees(log: ReleaseLog) -> None:
    state = asked(log)
    assert (state.stage, state.champion, state.aliases()["challenger"]) == (Stage.PILOT, 1, 2)
    assert state == current_state(log, DATASET)
    assert state.pending is not None
    found, pending = find_request(log, state.pending.id)
    assert (found, pending) == (state, state.pending)
    state = conclude(log, approve(log, state, BOB, "looked at the worst slices"), passes, BOB)
    assert (state.stage, state.champion, state.pending) == (Stage.TRAINING, 2, None)
    assert state == current_state(log, DATASET)
    request, approval, promotion = (entry.decision for entry in log.entries()[1:])
    assert [request.action, approval.action, promotion.action] == ["request", "approve", "promote"]
    assert approval.request == promotion.request == log.entries()[1].hash
    assert (approval.actor, approval.account, approval.reason) == ("bob", "bob", "looked at the worst slices")
    assert promotion.verdict == passes(pending).digest()


@pytest.mark.parametrize("outcome", [Outcome.HOLD, Outcome.FAIL])
def test_an_approval_of_something_that_is_now_worse_does_not_pass(log: ReleaseLog, outcome: Outcome) -> None:
    state = approve(log, asked(log), BOB, "fine last week")
    after = conclude(log, state, lambda _: verdict("pilot", 2, outcome), BOB)
    assert (after.stage, after.champion, after.pending) == (Stage.PILOT, 1, None)
    last = log.entries()[-1].decision
    assert (last.action, last.outcome) == (outcome.lower(), outcome)
    assert last.reason.startswith("judged again after approval")


def test_two_persons_means_two_names_and_two_accounts(file_log: ReleaseLog) -> None:
    state = approve(file_log, asked(file_log, persons=2), ADA, "fine")
    assert conclude(file_log, state, never_asked, ADA) == state
    with pytest.raises(IllegalMove, match="ada approved it already"):
        approve(file_log, state, Actor(name="ada", account="bob"), "once more")
    with pytest.raises(IllegalMove, match="the account ada approved it already"):
        approve(file_log, state, Actor(name="bob", account="ada"), "I am bob, really")
    for answer in (approve, decline):
        with pytest.raises(IllegalMove, match="its policy compares accounts: answer at the command line"):
            answer(file_log, state, Actor(name="bob"), "seen in the UI")
    state = approve(file_log, state, BOB, "fine too")
    assert conclude(file_log, state, passes, BOB).champion == 2
    assert len(file_log.entries()) == 5


def test_the_trainer_cannot_approve_under_any_name_when_the_policy_says_so(file_log: ReleaseLog) -> None:
    state = asked(file_log, trainer="cleo", may_approve=False)
    for trainer in (CLEO, Actor(name="bob", account="cleo"), Actor(name="cleo", account="bob")):
        with pytest.raises(IllegalMove, match="cleo trained it and may not approve it"):
            approve(file_log, state, trainer, "I know it best")
    with pytest.raises(IllegalMove, match="its policy compares accounts: answer at the command line"):
        approve(file_log, state, Actor(name="bob"), "seen in the UI")
    assert approve(file_log, state, BOB, "fine").pending is not None
    assert [entry.decision.action for entry in file_log.entries()].count(Action.APPROVE) == 1


def test_where_the_trainer_may_not_approve_nobody_is_asked_about_a_model_of_unknown_origin(
    file_log: ReleaseLog,
) -> None:
    with pytest.raises(IllegalMove, match="who did is unknown: train again"):
        asked(file_log, trainer="", may_approve=False)
    assert len(file_log.entries()) == 1


def test_only_who_approved_it_has_it_concluded(file_log: ReleaseLog) -> None:
    state = approve(file_log, asked(file_log), BOB, "fine")
    for bystander in (CLEO, Actor(name="bob", account="cleo"), Actor(name="cleo", account="bob")):
        with pytest.raises(InputError, match="approved already by bob; only who approved it"):
            conclude(file_log, state, never_asked, bystander)
    assert conclude(file_log, state, passes, BOB).champion == 2


def test_the_second_look_is_judged_by_the_policy_that_asked(file_log: ReleaseLog) -> None:
    state = approve(file_log, asked(file_log), BOB, "fine")
    lenient = verdict("pilot", 2).model_copy(update={"policy_digest": "another"})
    with pytest.raises(InputError, match="judged again by policy another, asked for by policy policy"):
        conclude(file_log, state, lambda _: lenient, BOB)
    assert current_state(file_log, DATASET) == state


def test_an_expired_request_can_neither_be_approved_nor_concluded(file_log: ReleaseLog) -> None:
    state = asked(file_log, hours=1e-9)
    for answer in (approve, decline):
        with pytest.raises(
            InputError, match=r"this request for flights expired at .*; run the rollout again"
        ):
            answer(file_log, state, BOB, "late")
    assert len(file_log.entries()) == 2
    assert state.pending is not None
    late = state.pending.model_copy(update={"approved_by": (BOB,)})
    with pytest.raises(InputError, match="expired"):
        conclude(file_log, state.model_copy(update={"pending": late}), never_asked, BOB)


def test_a_declined_request_is_over(log: ReleaseLog) -> None:
    state = asked(log)
    assert state.pending is not None
    after = decline(log, state, BOB, "the holidays are not in the data")
    assert (after.stage, after.champion, after.pending) == (Stage.PILOT, 1, None)
    with pytest.raises(InputError, match="was answered or overtaken already; waiting for approval: nothing"):
        find_request(log, state.pending.id)


def test_a_wrong_id_names_what_waits(file_log: ReleaseLog) -> None:
    state = asked(file_log)
    assert state.pending is not None
    for wrong in ("12345678", state.pending.id[:7], ""):
        with pytest.raises(InputError, match=rf"is no request; waiting .*: {state.pending.id} \(flights\)"):
            find_request(file_log, wrong)


def test_what_waits_cannot_be_promoted_around_its_approvers(file_log: ReleaseLog) -> None:
    state = asked(file_log)
    with pytest.raises(IllegalMove, match="its request for approval is another one"):
        apply_verdict(file_log, state, version(2), verdict("pilot", 2), ADA)
    assert current_state(file_log, DATASET) == state


def test_an_automatic_actor_holds_demotes_and_rolls_back_and_never_lets_in(file_log: ReleaseLog) -> None:
    with pytest.raises(IllegalMove, match="monitor acts by itself and may not bootstrap"):
        bootstrap(file_log, current_state(file_log, DATASET), version(1), MONITOR, "why not")
    state = climbed(file_log)
    with pytest.raises(IllegalMove, match="monitor acts by itself and may not promote"):
        apply_verdict(file_log, state, version(4), verdict("steady", 4, champion=3), MONITOR)
    held = apply_verdict(file_log, state, version(4), verdict("steady", 4, Outcome.HOLD, 3), MONITOR)
    terms = terms_of(Approval(approvers=1, trainer_may_approve=True, expires_hours=1), "")
    waits = apply_verdict(file_log, held, version(4), verdict("steady", 4, champion=3), MONITOR, terms)
    with pytest.raises(IllegalMove, match="monitor acts by itself and may not approve"):
        approve(file_log, waits, MONITOR, "looks good to me")
    assert rollback(file_log, waits, MONITOR, "p99").champion == 2
    last = file_log.entries()[-1].decision
    assert (last.actor, last.automatic) == ("monitor", True)


def test_a_rollback_voids_what_was_judged_against_the_model_that_is_gone(file_log: ReleaseLog) -> None:
    state = climbed(file_log)
    terms = terms_of(Approval(approvers=1, trainer_may_approve=True, expires_hours=1), "")
    state = apply_verdict(file_log, state, version(4), verdict("steady", 4, champion=3), ADA, terms)
    assert rollback(file_log, state, MONITOR, "p99").pending is None


def test_a_person_is_the_account_of_the_system_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert person() == Actor(name=account_name(), account=account_name())
    assert person(" Ada ").name == "Ada"
    assert automatic("monitor").automatic
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert account_name() == "uid 4000000000"


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "two\nlines", "\x1b[2J"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=re.escape("--as: ")):
        person(name)
