"""`dankai gate`: real evaluations in a real store, explained, tried under other policies, planned from."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from flows.cli import _answer, dankai
from pipelines.backtest import Replay
from pipelines.backtest import backtest as replay_all
from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.decisions import apply_verdict, bootstrap
from pipelines.evaluation import Evaluation
from pipelines.evaluations import earlier_looks, stored_evaluations, track
from pipelines.job import Job
from pipelines.judging import judge_stage
from pipelines.registry import ModelVersion, Tracker, registered_name
from pipelines.release_log import ReleaseLog
from pipelines.rollout import current_state
from pipelines.scoring import Scores, score_model
from pipelines.settings import Settings
from tests.release_cases import ADA, log_in, version
from tests.tiny_rollout import write_policy
from validation.gates import Outcome
from validation.policy import load_policy

NAME = "gatecommands"


class Judged(NamedTuple):
    """A steady gate that was asked once."""

    job: Job
    candidate: Scores
    champion: Scores
    evaluation: Evaluation
    policy: Path


@pytest.fixture(scope="module")
def judged(
    tmp_path_factory: pytest.TempPathFactory,
    pump: Windows,
    trained: dict[str, Checkpoint],
    store: Settings,
    tracker: Tracker,
) -> Judged:
    folder = tmp_path_factory.mktemp("gate")
    policy = write_policy(folder)
    spec = pump.spec.model_copy(update={"name": NAME})
    job = Job(store, spec, load_policy(policy), tracker, ReleaseLog.open(store), lambda *_: None)
    candidate, champion = (
        score_model(trained[mode], pump, "test", density, mode, folder, lambda *_: None)
        for mode, density in (("sparse", 0.25), ("dense", None))
    )
    evaluation = ask(job, candidate, champion)
    return Judged(job, candidate, champion, evaluation, policy)


def ask(job: Job, candidate: Scores, champion: Scores, **more: Any) -> Evaluation:
    return judge_stage(job, None, "steady", candidate, {"champion": champion}, [], **more)  # pyright: ignore


@pytest.fixture
def dankai_gate(
    store: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `dankai gate ARGUMENTS` on the shared store: exit status, output, complaint."""
    monkeypatch.setenv("DANKAI_HOME", str(store.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dankai", "gate", *map(str, arguments)])
        capsys.readouterr()
        code = _answer(dankai)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def changed(policy: Path, folder: Path, **changes: Any) -> Path:
    """The policy with other top-level values, or, as `steady_quality`, with another list there."""
    content = yaml.safe_load(policy.read_text())
    if "steady_quality" in changes:
        content["stages"]["steady"]["quality"] = changes.pop("steady_quality")
    path = folder / "new.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def own(judged: Judged, policy: Path) -> Replay:
    stored = stored_evaluations(judged.job.tracker, NAME, {"confirmation": "false"})
    return next(iter(replay_all(stored, load_policy(policy))))


def test_explain_says_every_check_with_its_evidence(
    judged: Judged, dankai_gate: Callable[..., tuple[int, str, str]]
) -> None:
    verdict = judged.evaluation.verdict
    code, said, _ = dankai_gate("explain", verdict.digest()[:12], "--policy", judged.policy)
    assert code == 0
    for words in (
        verdict.policy_digest,
        verdict.evidence.checkpoint,
        judged.champion.scored,
        verdict.digest(),
    ):
        assert words in said
    assert f"{NAME} steady gate: HOLD" in said
    assert f"as in {judged.policy} now" in said
    assert "time of asking: 1 (24 windows)" in said
    assert "serving: HOLD" in said
    assert "release log: holds no decision on this verdict" in said
    for check in verdict.checks:
        assert check.reason in said
    (run,) = re.findall(r"run ([0-9a-f]{32})", said)
    as_json = json.loads(dankai_gate("explain", run, "--json")[1])
    assert as_json["verdict_digest"] == verdict.digest()
    assert as_json["release_log"] == []
    assert as_json["policy_is_current"] is False  # the shipped policy is another
    assert Evaluation.model_validate(as_json["evaluation"]).verdict == verdict


def register(tracker: Tracker, name: str) -> None:
    """Two versions without files: aliases need no more."""
    tracker._client.create_registered_model(registered_name(name))
    for _ in range(2):
        tracker._client.create_model_version(registered_name(name), "runs:/none/model")


def test_what_the_release_log_says_of_a_verdict_is_shown_and_an_edited_evaluation_is_refused(
    judged: Judged, dankai_gate: Callable[..., tuple[int, str, str]], store: Settings
) -> None:
    evaluation, log, name = judged.evaluation, judged.job.log, "gateedited"
    job = replace(judged.job, spec=judged.job.spec.model_copy(update={"name": name}))
    register(job.tracker, name)  # what the log names has to exist for whoever reconciles this store next
    passed = evaluation.verdict.model_copy(update={"outcome": Outcome.PASS})
    run = track(job, evaluation.model_copy(update={"verdict": passed}), is_confirmation=True)
    state = bootstrap(log, current_state(log, name), version(1, name), ADA, "first")
    weights = {"checkpoint": passed.evidence.checkpoint, "name": registered_name(name)}
    challenger = version(2, name).model_copy(update=weights)
    live = state.releases[0].model_copy(update={"checkpoint": judged.champion.scored})
    apply_verdict(log, state.model_copy(update={"releases": (live,)}), challenger, passed, ADA)
    entry = log.entries()[-1]
    said = dankai_gate("explain", run)[1]
    assert f"release log: entry {entry.sequence} ({entry.hash[:12]}): promote by ada" in said

    [path] = [each for each in store.artifacts.rglob("evaluation.json") if run in each.parts]
    kept = path.read_text()
    for edit in ('"outcome": "PASS"', '"outcome": "FAIL"'), ('"subject": "', '"subject": "our '):
        path.write_text(kept.replace(*edit, 1))
        code, _, complaint = dankai_gate("explain", run)
        assert (code, path.read_text() != kept) == (2, True)
        assert f"run {run}: evaluation.json is not what was judged: it was edited" in complaint
    path.write_text(kept)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "0123456789"], "none of"),
        (["explain", "abc"], "6 or more characters"),
        (["explain", "not-a-run"], "6 or more characters"),
        (["explain", "../../etc"], "6 or more characters"),
        (["explain", "0123456789", "--policy", "gone.yaml"], "gone.yaml: cannot be read"),
        (["backtest", "--policy", "gone.yaml"], "gone.yaml: cannot be read"),
        (["backtest"], "--policy"),
        (["simulate"], "give either --run"),
        (["simulate", "--deviation", "0.1"], "needs at least one --margin"),
        (["simulate", "--deviation", "-1", "--margin", "1"], "has to be above 0"),
        (["simulate", "--deviation", "1", "--margin", "-1"], "at least 0"),
        (["simulate", "--deviation", "1", "--margin", "nan"], "at least 0"),
        (["simulate", "--deviation", "inf", "--margin", "1"], "--deviation has to be above 0"),
        (
            ["simulate", "--calibration", "--output", "/nowhere/rates.json"],
            "cannot be written to; name another",
        ),
        (["simulate", "--deviation", "1", "--margin", "1", "--power", "80"], "between 0 and 1"),
        (["simulate", "--deviation", "1", "--margin", "1", "--look", "4"], "1 to 3"),
        (["simulate", "--run", "0123456789"], "none of"),
        (["simulate", "--calibration", "--draws", "0"], "at least 1"),
    ],
)
def test_a_mistake_is_said_in_one_line_with_exit_status_2(
    arguments: list[str], words: str, judged: Judged, dankai_gate: Callable[..., tuple[int, str, str]]
) -> None:
    code, said, complaint = dankai_gate(*arguments)
    assert code == 2
    assert words in complaint
    assert not said
    assert "Traceback" not in complaint


def test_a_question_makes_no_store(
    tmp_path: Path, dankai_gate: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANKAI_HOME", str(tmp_path / "empty"))
    code, _, complaint = dankai_gate("explain", "0123456789")
    assert code == 2
    assert "nothing was judged here yet" in complaint
    assert not (tmp_path / "empty").exists()


def test_the_same_policy_changes_nothing(judged: Judged) -> None:
    same = own(judged, judged.policy)
    assert (same.was, same.would_be) == (Outcome.HOLD, Outcome.HOLD)
    assert not same.changes
    assert not same.recomputed


def test_another_margin_is_replayed_from_what_was_stored(
    judged: Judged, tmp_path: Path, dankai_gate: Callable[..., tuple[int, str, str]]
) -> None:
    absurd = [{"kpi": "auroc", "at_least": 1.0}]
    new = changed(judged.policy, tmp_path, steady_quality=absurd)
    found = own(judged, new)
    assert (found.was, found.would_be, found.is_other, found.recomputed) == ("HOLD", "FAIL", True, False)
    assert any(change.check == "quality: auroc" and change.was is None for change in found.changes)
    code, said, _ = dankai_gate("backtest", "--policy", new, "--dataset", NAME)
    assert code == 0
    assert "1 would change" in said
    assert "HOLD -> FAIL" in said
    assert "quality: auroc: not asked -> FAIL: auroc" in said
    replays = json.loads(dankai_gate("backtest", "--policy", new, "--dataset", NAME, "--json")[1])["replays"]
    assert [each["would_be"] for each in replays] == ["FAIL"]


def test_another_confidence_is_computed_again_from_the_scores(judged: Judged, tmp_path: Path) -> None:
    surer = own(judged, changed(judged.policy, tmp_path, confidence=0.99))
    assert surer.recomputed
    assert surer.would_be is Outcome.HOLD


def test_scores_that_are_gone_are_said_and_not_made_up(
    judged: Judged, tmp_path: Path, dankai_gate: Callable[..., tuple[int, str, str]]
) -> None:
    scores = Path(judged.candidate.path)
    content = scores.read_bytes()
    scores.unlink()
    try:
        new = changed(judged.policy, tmp_path, confidence=0.99)
        found = own(judged, new)
        _, said, _ = dankai_gate("backtest", "--policy", new, "--dataset", NAME)
    finally:
        scores.write_bytes(content)
    assert found.would_be is None
    assert "the scores cannot be read" in found.problem
    assert "HOLD -> not replayed" in said
    assert "1 could not be replayed" in said


def test_windows_that_a_margin_needs(
    judged: Judged, dankai_gate: Callable[..., tuple[int, str, str]]
) -> None:
    digest = judged.evaluation.verdict.digest()[:16]
    code, said, _ = dankai_gate("simulate", "--run", digest, "--margin", 0.01, "--policy", judged.policy)
    assert code == 0
    assert "auroc vs champion: a loss of 0.01 is allowed, truly as good: it takes" in said
    assert "with 24 windows it passes with" in said
    plans = json.loads(dankai_gate("simulate", "--deviation", 0.05, "--margin", 0.01, "--json")[1])
    assert 150 < plans[0]["needed"]["0.8"] < plans[0]["needed"]["0.9"] < 400


def test_a_calibration_is_written_with_what_made_it(
    tmp_path: Path, dankai_gate: Callable[..., tuple[int, str, str]]
) -> None:
    code, said, _ = dankai_gate(
        "simulate", "--calibration", "--draws", 2, "--output", tmp_path / "rates.json"
    )
    assert code == 0
    assert "one check, separate windows" in said
    written = json.loads((tmp_path / "rates.json").read_text())
    assert {"rates", "confidence", "looks", "date", "environment"} <= written.keys()


def test_asked_again_it_is_remembered_and_a_confirmation_is_no_look(judged: Judged, tmp_path: Path) -> None:
    """New evidence takes the second look; what confirms a PASS takes none; the same evidence takes none.

    They are counted in the release log: whoever deletes them in MLflow gets none for nothing.
    """
    spec = judged.job.spec.model_copy(update={"name": f"{NAME}_again"})
    job = replace(judged.job, spec=spec, log=log_in(tmp_path))
    candidate, live = (
        ModelVersion(
            name=registered_name(job.spec.name),
            version=number,
            checkpoint=each.scored,
            snapshot=each.snapshot,
        )
        for number, each in ((2, judged.candidate), (1, judged.champion))
    )
    state = bootstrap(job.log, current_state(job.log, job.spec.name), live, ADA, "the dense incumbent")
    fewer = judged.champion.model_copy(update={"density": 0.5})  # another subject to compare with
    first = ask(job, judged.candidate, fewer).verdict
    assert first.evidence.look == 1
    apply_verdict(job.log, state, candidate, first, ADA)
    assert ask(job, judged.candidate, fewer, is_confirmation=True).verdict.evidence.look == 1
    assert len(earlier_looks(job, "steady", judged.candidate)) == 1
    for run in job.tracker.find_runs({"dataset": job.spec.name}):
        job.tracker._client.delete_run(run.info.run_id)
    second = ask(job, judged.candidate, judged.champion).verdict
    assert second.evidence.look == 2
    apply_verdict(job.log, current_state(job.log, job.spec.name), candidate, second, ADA)
    again = replace(job, policy=job.policy.model_copy(update={"min_windows": 21}))
    assert ask(again, judged.candidate, judged.champion).verdict.evidence.look == 2


def test_a_judgement_that_has_grown_old_is_made_again(judged: Judged) -> None:
    job = replace(judged.job, policy=judged.job.policy.model_copy(update={"max_age_hours": 1e-9}))
    aged = judged.candidate.model_copy(update={"scored_at": "2026-01-01T00:00:00+00:00"})
    first = ask(job, aged, judged.champion)
    assert "hours ago" in " ".join(first.verdict.reasons)
    stored = list(stored_evaluations(job.tracker, NAME, {"policy": job.policy.digest()}))
    ask(job, aged, judged.champion)
    assert (
        len(list(stored_evaluations(job.tracker, NAME, {"policy": job.policy.digest()}))) == len(stored) + 1
    )
