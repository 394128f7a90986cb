"""Scores and KPIs: every subject on the same windows, every number with the digests of what it is about."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.baselines import score_baseline
from pipelines.checkpoint import Checkpoint
from pipelines.clock import now
from pipelines.data.spec import load_spec
from pipelines.data.windows import Windows
from pipelines.evaluation import (
    Evaluation,
    evaluate,
    groups_asked,
    recall_kpi,
    resampling,
    seed_spread_kpi,
)
from pipelines.scoring import Scores, load_scored, load_slices, score_model
from tests.tiny_rollout import train_tiny, windows_of, write_dataset, write_policy
from validation.errors import InputError
from validation.evidence import Evidence, Look
from validation.gates import Outcome, judge
from validation.kpis import kpi
from validation.policy import Policy, load_policy
from validation.statistics import METRICS, Interval, Scored, num_telling_windows

PART = "test"


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(write_policy(folder))


@pytest.fixture(scope="module")
def dense(pump: Windows, trained: dict[str, Checkpoint], folder: Path) -> Scores:
    return score_model(trained["dense"], pump, PART, None, "dense", folder, silent)


@pytest.fixture(scope="module")
def sparse(pump: Windows, trained: dict[str, Checkpoint], folder: Path) -> Scores:
    return score_model(trained["sparse"], pump, PART, 0.25, "sparse", folder, silent)


@pytest.fixture(scope="module")
def baseline(pump: Windows, folder: Path) -> Scores:
    [scores] = score_baseline(pump, [PART], folder, silent)
    return scores


def test_every_subject_answers_the_same_questions(dense: Scores, sparse: Scores, baseline: Scores) -> None:
    arrays = [np.load(each.path) for each in (dense, sparse, baseline)]
    for other in arrays[1:]:
        for name in ("targets", "mask", "rows", "slice.site"):
            np.testing.assert_array_equal(arrays[0][name], other[name])
    assert {each.num_windows for each in (dense, sparse, baseline)} == {24}
    assert load_scored(dense).scores.shape == (24, 16, 1)


def test_targets_and_slices_are_those_of_the_table(dense: Scores, pump: Windows) -> None:
    rows = np.load(dense.path)["rows"]
    np.testing.assert_array_equal(load_scored(dense).targets[..., 0], pump.column("tripped")[rows])
    np.testing.assert_array_equal(load_slices(dense)["site"], pump.column("site")[rows])
    assert len(np.unique(rows)) == rows.size  # windows a stride apart: no step is judged twice


def test_scores_of_events_are_probabilities_and_worth_something(dense: Scores, baseline: Scores) -> None:
    for each in (dense, baseline):
        scored = load_scored(each)
        assert ((scored.scores >= 0) & (scored.scores <= 1)).all()
        assert METRICS["auroc"](scored) > 0.85


def test_a_score_does_not_depend_on_the_windows_scored_with_it(
    pump: Windows,
    trained: dict[str, Checkpoint],
    folder: Path,
    dense: Scores,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.scoring._TOKENS", 80)  # one window at a time
    alone = score_model(trained["dense"], pump, PART, None, "alone", folder, silent)
    np.testing.assert_allclose(load_scored(alone).scores, load_scored(dense).scores, atol=1e-5)


def test_altered_scores_are_refused(dense: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    path.write_bytes(Path(dense.path).read_bytes() + b" ")
    with pytest.raises(InputError, match="not the scores that were recorded"):
        load_scored(dense.model_copy(update={"path": str(path)}))


def test_scores_of_another_stride_do_not_take_the_place_of_these(
    pump: Windows, trained: dict[str, Checkpoint], folder: Path, dense: Scores, tmp_path: Path
) -> None:
    other = windows_of(load_spec(write_dataset(tmp_path, stride=32)), tmp_path)
    apart = score_model(trained["dense"], other, PART, None, "dense", folder, silent)
    assert apart.num_windows == 12
    assert load_scored(dense).num_windows == 24


def test_every_kpi_carries_the_digests_of_what_was_measured(
    sparse: Scores, dense: Scores, baseline: Scores, pump: Windows, policy: Policy
) -> None:
    references = {"dense": dense, "baseline": baseline}
    evaluation = evaluate("training", pump.spec, policy, sparse, references)  # pyright: ignore[reportArgumentType]
    for each in evaluation.kpis:
        assert each.checkpoint == sparse.scored
        assert each.snapshot == pump.snapshot.content_hash
        assert each.low <= each.value <= each.high
        if each.versus:
            assert each.reference_checkpoint == references[each.versus].scored
    assert evaluation.verdict.evidence.references == {"dense": dense.scored, "baseline": baseline.scored}
    # Nothing was measured of cost: the gate may not let it pass.
    assert evaluation.verdict.outcome is Outcome.HOLD
    assert any("was not measured" in reason for reason in evaluation.verdict.reasons)


def test_a_difference_is_the_difference_of_the_two_metrics_and_every_group_has_its_own(
    sparse: Scores, dense: Scores, pump: Windows, policy: Policy
) -> None:
    evaluation = evaluate("pilot", pump.spec, policy, sparse, {"dense": dense})
    found = {(each.name, each.slice, each.versus): each for each in evaluation.kpis}
    ours, theirs = (METRICS["auroc"](load_scored(each)) for each in (sparse, dense))
    paired = found["auroc", "", "dense"]
    assert paired.value == pytest.approx(ours - theirs)
    assert paired.reference_value == pytest.approx(theirs)
    assert found["auroc", "", None].value == pytest.approx(ours)
    sites = {label for _, label, _ in found if label}
    assert sites == {"site=north", "site=south"}
    north = load_slices(sparse)["site"] == "north"
    expected = METRICS["auroc"](load_scored(sparse).restrict(north[..., None]))
    assert found["auroc", "site=north", None].value == pytest.approx(expected)


def test_a_model_compared_with_itself_differs_by_nothing(
    dense: Scores, pump: Windows, policy: Policy
) -> None:
    evaluation = evaluate("pilot", pump.spec, policy, dense, {"dense": dense})
    [paired] = [
        each for each in evaluation.kpis if (each.name, each.slice, each.versus) == ("auroc", "", "dense")
    ]
    assert (paired.low, paired.value, paired.high) == (0.0, 0.0, 0.0)


def test_recall_is_whole_when_everything_is_read_and_grows_with_the_budget(
    pump: Windows, trained: dict[str, Checkpoint]
) -> None:
    few, half, all_ = (recall_kpi(trained["sparse"], pump, PART, share) for share in (0.1, 0.5, 1.0))
    assert 0 < few.value < half.value < all_.value
    assert all_.value == pytest.approx(1.0, abs=1e-5)
    assert all_.n == 24
    assert all_.checkpoint == trained["sparse"].sha256


def test_the_spread_over_seeds_needs_more_than_one(
    pump: Windows, trained: dict[str, Checkpoint], sparse: Scores, folder: Path, tmp_path: Path
) -> None:
    other, _ = train_tiny(pump, "sparse", tmp_path, seed=1)
    second = score_model(other, pump, PART, 0.25, "seed1", folder, silent)
    a, b = (METRICS["auroc"](load_scored(each)) for each in (sparse, second))
    assert seed_spread_kpi([sparse, second], pump.spec).value == pytest.approx(2 * abs(a - b) / (a + b))
    assert np.isnan(seed_spread_kpi([sparse], pump.spec).value)


def test_windows_that_share_steps_are_drawn_together(pump: Windows, policy: Policy) -> None:
    apart = resampling(policy, pump.spec, 100)
    shared = resampling(policy, pump.spec.model_copy(update={"stride": 2}), 100)
    assert shared["block_length"] >= 8 > 0
    assert shared["block_length"] >= apart["block_length"]


def judged(pump: Windows, policy: Policy, sparse: Scores, reference: Scores, **more: Any) -> Evaluation:
    return evaluate("steady", pump.spec, policy, sparse, {"champion": reference}, **more)


def reasons(evaluation: Evaluation) -> str:
    return " / ".join(evaluation.verdict.reasons)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"snapshot": "f" * 64}, "champion was scored on snapshot ffffffffffff, not on"),
        ({"part": "2024-05"}, "champion was not scored on the same windows: score it again on part test"),
    ],
)
def test_a_champion_scored_on_other_data_is_not_compared(
    change: dict[str, str], words: str, pump: Windows, policy: Policy, sparse: Scores, dense: Scores
) -> None:
    evaluation = judged(pump, policy, sparse, dense.model_copy(update=change))
    assert evaluation.verdict.outcome is Outcome.HOLD
    assert words in reasons(evaluation)
    assert not [each for each in evaluation.kpis if each.versus]


def test_a_champion_scored_on_another_month_is_not_compared(
    pump: Windows, policy: Policy, trained: dict[str, Checkpoint], sparse: Scores, folder: Path
) -> None:
    """Whatever the scores claim, the windows themselves are compared."""
    month = score_model(trained["dense"], pump, "2024-05", None, "dense", folder, silent)
    evaluation = judged(pump, policy, sparse, month.model_copy(update={"part": PART}))
    assert "champion was not scored on the same windows" in reasons(evaluation)


def test_old_scores_hold(pump: Windows, policy: Policy, sparse: Scores, dense: Scores) -> None:
    old = dense.model_copy(update={"scored_at": "2020-01-01T00:00:00+00:00"})
    assert "hours ago, 168 are allowed" in reasons(judged(pump, policy, sparse, old))
    undated = dense.model_copy(update={"scored_at": ""})
    assert "does not say when it was measured" in reasons(judged(pump, policy, sparse, undated))


def test_asking_again_with_the_same_evidence_is_no_further_look(
    pump: Windows, policy: Policy, sparse: Scores, dense: Scores
) -> None:
    first = judged(pump, policy, sparse, dense)
    looks = first.verdict.evidence.looks
    assert [look.num_windows for look in looks] == [24]
    rescored = dense.model_copy(update={"scored_at": now(), "sha256": dense.sha256})
    again = judged(pump, policy, sparse, rescored, earlier=looks)
    assert again.verdict.evidence.looks == looks
    assert next(each.confidence for each in again.kpis if each.versus) == pytest.approx(0.96)


def test_other_evidence_is_the_next_look_and_needs_more_certainty(
    pump: Windows, policy: Policy, sparse: Scores, dense: Scores
) -> None:
    earlier = [Look(evidence="fewer windows", num_windows=12)]
    first = judged(pump, policy, sparse, dense)
    second = judged(pump, policy, sparse, dense, earlier=earlier)
    assert second.verdict.evidence.look == 2
    widths = [
        next(each.high - each.low for each in evaluation.kpis if each.versus and not each.slice)
        for evaluation in (first, second)
    ]
    assert widths[1] > widths[0]
    assert all(each.confidence == pytest.approx(0.995) for each in second.kpis)


def test_groups_that_count_share_a_band(pump: Windows, policy: Policy, sparse: Scores, dense: Scores) -> None:
    evaluation = judged(pump, policy, sparse, dense)
    groups = [each for each in evaluation.kpis if each.slice and each.versus and each.name == "auroc"]
    assert len(groups) == 2
    for each in groups:
        assert each.joint_low is not None
        assert each.joint_high is not None
        assert each.joint_low < each.value < each.joint_high
        # About as wide at least: it is symmetric, and the interval of a few windows is not.
        assert each.joint_high - each.joint_low > 0.9 * (each.high - each.low)
    counted = groups_asked(policy.stage("steady").thresholds)
    assert counted == {"champion": 20}  # min_windows: a smaller min_group does not undercut it


def test_a_dozen_windows_a_machine_are_no_evidence_and_hold_the_shipped_gate() -> None:
    infra = Path(__file__).parents[2] / "infra"
    spec = load_spec(infra / "datasets" / "server_machines.yaml")
    evidence = Evidence(
        checkpoint="ours",
        snapshot="data",
        task_metric="auroc",
        references={"dense": "dense", "baseline": "components"},
        slices=spec.slices,
    )
    equal = Interval(value=0.0, low=-0.01, high=0.01, n=12, confidence=0.95)
    about: dict[str, Any] = {"checkpoint": "ours", "snapshot": "data", "versus": "dense"}
    about |= {"reference_value": 0.8, "reference_checkpoint": "dense"}
    machines = [kpi("auroc", equal, slice=f"entity=machine-{name}", **about) for name in ("1-6", "2-1")]
    verdict = judge(machines, load_policy(infra / "rollout.yaml").stage("pilot"), evidence)
    [by_machine] = [check for check in verdict.checks if check.slice == "worst:entity"]
    assert (by_machine.severity, by_machine.outcome) == ("required", Outcome.HOLD)
    assert "by entity: HOLD because none of 2 groups has 60 windows" in by_machine.reason


def test_a_group_counts_by_the_windows_that_tell() -> None:
    """Ten windows, events in two: what is known of a ranking is known from two."""
    targets = np.zeros((10, 4))
    targets[[2, 5], 0] = 1
    scored = Scored(np.random.default_rng(0).random((10, 4)), targets, np.ones((10, 4)))
    assert num_telling_windows(METRICS["auroc"], scored) == 2
    assert num_telling_windows(METRICS["log_loss"], scored) == 10
