"""Who is let in: once, in order, and only by a gate that passed."""

import shutil
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipelines import release
from pipelines.actors import automatic
from pipelines.checkpoint import Checkpoint
from pipelines.data.spec import load_spec
from pipelines.decisions import demote
from pipelines.job import Job
from pipelines.registry import Tracker
from pipelines.release import answer_request, champion_to_beat, decide, enter_challenger, start_pilot
from pipelines.release_log import ReleaseLog, Stage
from pipelines.rollout import current_state
from pipelines.second_look import PURPOSE, Case, Lineup, SignedCase, keep_case, read_case
from pipelines.settings import Settings
from pipelines.signing import load_key, sign
from tests.release_cases import ADA, BOB, log_in
from tests.tiny_rollout import write_dataset, write_policy
from validation.errors import InputError
from validation.gates import Evidence, Outcome, StagePolicy, Verdict, judge
from validation.kpis import kpi
from validation.policy import load_policy

Models = dict[str, Checkpoint]


@pytest.fixture(scope="module")
def models(trained: Models, tracker: Tracker) -> Models:
    """The tiny models, each with the run that trained it."""
    tracked = {}
    for mode, checkpoint in trained.items():
        with tracker.run(mode, "training") as run_id:
            tracked[mode] = checkpoint.model_copy(update={"run_id": run_id})
    return tracked


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest, store: Settings, tracker: Tracker) -> Job:
    """A rollout of the test's own in the shared store."""
    name = f"release_{zlib.crc32(request.node.name.encode())}"
    spec = load_spec(write_dataset(tmp_path, name))
    policy = load_policy(write_policy(tmp_path))
    return Job(store, spec, policy, tracker, ReleaseLog.open(store), lambda *_: None)


def verdict(
    stage: str, candidate: Checkpoint, outcome: Outcome, champion: Checkpoint | None = None
) -> Verdict:
    """What a gate would say that asks for a small bundle; HOLD where its size was not measured."""
    policy = {"stage": stage, "thresholds": [{"kpi": "bundle_bytes", "at_most": 10}]}
    sizes = {Outcome.PASS: [1.0], Outcome.FAIL: [99.0], Outcome.HOLD: []}[outcome]
    about = {"checkpoint": candidate.sha256, "snapshot": candidate.snapshot}
    size = partial(kpi, "bundle_bytes", checkpoint=candidate.sha256, snapshot=candidate.snapshot)
    references = {"champion": champion.sha256} if champion else {}
    evidence = Evidence.model_validate({**about, "task_metric": "auroc", "references": references})
    enough = {"min_windows": 1, "min_timings": 1, "min_processes": 1}
    said = judge([size(each) for each in sizes], StagePolicy.model_validate(policy | enough), evidence)
    assert said.outcome is outcome
    return said


def actions(job: Job) -> list[str]:
    own = [entry.decision for entry in job.log.entries() if entry.decision.dataset == job.spec.name]
    return [str(decision.action) for decision in own]


def climbed(job: Job, models: Models) -> Job:
    """The sparse model live in operation."""
    start_pilot(job, models["dense"], "the incumbent")
    decide(
        job, Lineup(candidate=models["selector"]), verdict("pilot", models["selector"], Outcome.PASS), 0.25
    )
    for stage in ("training", "edge"):
        decide(job, Lineup(candidate=models["sparse"]), verdict(stage, models["sparse"], Outcome.PASS), 0.25)
    assert actions(job) == ["bootstrap", "promote", "promote", "promote"]
    return job


def test_a_rollout_starts_once(job: Job, models: Models) -> None:
    first = start_pilot(job, models["dense"], "the incumbent")
    assert start_pilot(job, models["dense"], "the incumbent") == first
    assert actions(job) == ["bootstrap"]
    assert job.tracker.aliases(f"dankai-{job.spec.name}") == {"champion": first.champion}


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.HOLD])
def test_a_gate_that_does_not_pass_moves_nothing_and_is_asked_once(
    outcome: Outcome, job: Job, models: Models
) -> None:
    before = start_pilot(job, models["dense"], "the incumbent")
    said = verdict("pilot", models["selector"], outcome)
    after = decide(job, Lineup(candidate=models["selector"]), said, 0.25)
    assert after.releases == before.releases
    assert decide(job, Lineup(candidate=models["selector"]), said, 0.25) == after
    assert actions(job) == ["bootstrap", str(outcome).lower()]


def test_a_stage_left_behind_is_not_decided_again(job: Job, models: Models) -> None:
    climbed(job, models)
    before = current_state(job.log, job.spec.name)
    for outcome in (Outcome.PASS, Outcome.FAIL):
        assert (
            decide(job, Lineup(candidate=models["dense"]), verdict("pilot", models["dense"], outcome), 0.25)
            == before
        )


def test_a_challenger_meets_what_is_live_as_it_was_trained(job: Job, models: Models) -> None:
    """Not a record of it that somebody made weaker; and a candidate that is live meets what it replaced."""
    climbed(job, models)
    for mode in ("dense", "selector", "sparse"):
        job.once(f"train-{mode}", {}, Checkpoint, lambda mode=mode: models[mode])
    challenger = models["sparse"].model_copy(update={"sha256": "a new one"})
    met = [champion_to_beat(job, each) for each in (challenger, models["sparse"], models["dense"])]
    weights = [each and each.sha256 for each in met]
    assert weights == [models["sparse"].sha256, models["selector"].sha256, None]
    [record] = job.settings.steps.glob(f"{job.spec.name}-train-sparse-*.json")
    record.write_text(record.read_text().replace('"num_heads": 2', '"num_heads": 4'))
    with pytest.raises(InputError, match="has no training of the live model"):
        champion_to_beat(job, challenger)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_challenger_enters_once_and_replaces_the_champion_only_on_pass(
    outcome: Outcome, job: Job, models: Models
) -> None:
    climbed(job, models)
    challenger, champion = models["dense"], models["sparse"]
    before = current_state(job.log, job.spec.name)
    entered = enter_challenger(job, challenger, "drift in May", 0.25)
    assert entered.challenger not in (None, before.champion)
    assert job.tracker.aliases(f"dankai-{job.spec.name}")["challenger"] == entered.challenger
    after = decide(job, Lineup(candidate=challenger), verdict("steady", challenger, outcome, champion), 0.25)
    assert (after.champion == entered.challenger) == (outcome is Outcome.PASS)
    assert (after.champion == before.champion) == (outcome is not Outcome.PASS)
    again = enter_challenger(job, challenger, "drift in May", 0.25)
    assert again == after
    assert actions(job)[4:] == ["retrain", {"PASS": "promote"}.get(str(outcome), str(outcome).lower())]
    live = job.tracker.aliases(f"dankai-{job.spec.name}")
    assert live["champion"] == after.champion


def test_a_meeting_with_a_champion_that_is_not_live_decides_nothing(job: Job, models: Models) -> None:
    climbed(job, models)
    before = current_state(job.log, job.spec.name)
    said = verdict("steady", models["selector"], Outcome.PASS, champion=models["dense"])
    assert decide(job, Lineup(candidate=models["selector"]), said, 0.25) == before


# People --------------------------------------------------------------------------------------------


def in_store(job: Job, model: Checkpoint) -> Checkpoint:
    """The same model where a rollout would keep it."""
    folder = job.folder / "models" / model.mode
    if not folder.exists():
        shutil.copytree(model.folder, folder)
    return model.model_copy(update={"folder": str(folder)})


def test_a_request_that_nobody_answered_in_time_or_that_became_void_is_asked_anew(
    job: Job, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(climbed(job, models), actor=automatic("nightly"))
    challenger, champion = models["dense"], models["sparse"]
    said = verdict("steady", challenger, Outcome.PASS, champion)

    def ask() -> str:
        state = decide(job, Lineup(candidate=challenger, champion=champion), said, 0.25)
        assert state.pending is not None
        return state.pending.request

    first = ask()
    assert ask() == first
    demoted = demote(job.log, current_state(job.log, job.spec.name), Stage.EDGE, job.actor, "canary")
    assert demoted.pending is None
    brief = release.UNATTENDED.model_copy(update={"expires_hours": 1e-9})
    with monkeypatch.context() as patched:
        patched.setattr(release, "UNATTENDED", brief)
        expired = ask()
    last = ask()
    assert ask() == last
    assert len({first, expired, last}) == 3
    assert actions(job)[4:] == ["request", "demote", "request", "request"]


def test_a_case_that_is_not_what_was_asked_about_is_refused(job: Job, models: Models) -> None:
    dense, sparse, selector = (in_store(job, models[mode]) for mode in ("dense", "sparse", "selector"))
    said = verdict("steady", selector, Outcome.PASS, sparse)
    lineup = Lineup(candidate=selector, champion=sparse)
    keep_case(job, lineup, said)
    name, digest = job.spec.name, said.digest()
    case = read_case(job.settings, name, digest)
    assert case.lineup.digest() == lineup.digest()
    assert (case.verdict.digest(), case.policy.digest()) == (digest, job.policy.digest())
    [path] = (job.folder / "cases").iterdir()

    def refused(changed: Case, signature: str | None = None) -> str:
        key = load_key(job.settings.keys)
        signature = signature or sign(key, PURPOSE, changed.digest().encode())
        path.write_text(SignedCase(case=changed, signature=signature).model_dump_json())
        with pytest.raises(InputError) as error:
            read_case(job.settings, name, digest)
        [line] = str(error.value).splitlines()
        assert line.startswith(f"{path}: ")
        return line

    signature = SignedCase.model_validate_json(path.read_bytes()).signature
    lenient = case.model_copy(update={"policy": job.policy.model_copy(update={"min_windows": 1})})
    assert "its signature does not hold" in refused(lenient, signature)
    assert "its signature does not hold" in refused(case, sign(load_key(job.settings.keys), "other", b"case"))
    # Even where somebody signed it:
    worse = lineup.model_copy(update={"champion": dense})
    assert "its champion model is not the one that was judged" in refused(
        case.model_copy(update={"lineup": worse})
    )
    extra = lineup.model_copy(update={"dense": dense})
    assert "its dense model is not the one" in refused(case.model_copy(update={"lineup": extra}))
    outside = lineup.model_copy(update={"champion": models["sparse"]})
    assert "lies outside" in refused(case.model_copy(update={"lineup": outside}))
    another = case.model_copy(update={"verdict": verdict("steady", selector, Outcome.PASS, dense)})
    assert "it belongs to another verdict" in refused(another)


def test_an_approval_that_was_cut_off_before_the_second_look_counts_once(
    job: Job, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbed(job, models)
    challenger, champion = (in_store(job, models[mode]) for mode in ("dense", "sparse"))
    said = verdict("steady", challenger, Outcome.PASS, champion)
    lineup = Lineup(candidate=challenger, champion=champion)
    state = decide(replace(job, actor=automatic("nightly")), lineup, said, 0.25)
    assert state.pending is not None

    class CutOff(BaseException):
        """As a power cut would: nothing handles it."""

    def cut(*_: object) -> Verdict:
        raise CutOff

    answer = partial(
        answer_request, job.settings, state.pending.id, reason="fine", approves=True, report=lambda *_: None
    )
    monkeypatch.setattr(release, "look_again", cut)
    with pytest.raises(CutOff):
        answer(actor=ADA)
    assert actions(job)[4:] == ["request", "approve"]
    monkeypatch.setattr(release, "look_again", lambda *_: said)
    with pytest.raises(InputError, match="approved already by ada; only who approved it"):
        answer(actor=BOB)
    assert answer(actor=ADA).champion != state.champion
    assert actions(job)[4:] == ["request", "approve", "promote"]


def test_a_log_that_was_emptied_is_not_begun_anew(job: Job, models: Models, tmp_path: Path) -> None:
    start_pilot(job, models["dense"], "the incumbent")
    emptied = replace(job, log=log_in(tmp_path))
    with pytest.raises(InputError, match=r"the registry has seen release .*; restore the log from a backup"):
        start_pilot(emptied, models["dense"], "once more")
    assert emptied.log.entries() == []
