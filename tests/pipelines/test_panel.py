"""A better average that one group pays for: the largest gap is measured, named, and can hold a promotion."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from pipelines.backtest import backtest
from pipelines.clock import now
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.evaluation import evaluate, groups_of, task_kpis
from pipelines.evaluations import Stored
from pipelines.scoring import Scores
from tests.tiny_rollout import ROOT, write_dataset
from validation.gates import Outcome, Verdict
from validation.policy import Policy, load_policy

POLICY = load_policy(ROOT / "infra" / "rollout.yaml").model_copy(update={"num_resamples": 300})
WINDOWS, STEPS = 120, 40


@pytest.fixture
def spec(tmp_path: Path) -> DatasetSpec:
    return load_spec(write_dataset(tmp_path))


def scores(folder: Path, name: str, north: float, south: float) -> Scores:
    """Of 120 windows; how well each site's positives stand out, in standard deviations."""
    generator = np.random.default_rng(0)
    targets = (generator.random((WINDOWS, STEPS, 1)) < 0.3).astype(np.float32)
    site = np.broadcast_to(np.where(np.arange(STEPS) % 2, "north", "south"), (WINDOWS, STEPS))
    skill = np.where(site == "north", north, south)[..., None]
    values = generator.normal(size=targets.shape) + skill * targets
    buffer = io.BytesIO()
    arrays = {"scores": values, "targets": targets, "mask": np.ones_like(targets), "slice.site": site}
    np.savez_compressed(buffer, **arrays)
    path = folder / f"{name}.npz"
    path.write_bytes(buffer.getvalue())
    return Scores(
        path=str(path),
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        subject=name,
        scored=name,
        part="test",
        snapshot="data",
        num_windows=WINDOWS,
        scored_at=now(),
    )


def verdict(spec: DatasetSpec, policy: Policy, challenger: Scores, champion: Scores) -> Verdict:
    references = {"champion": champion, "baseline": champion}
    return evaluate("steady", spec, policy, challenger, references).verdict  # pyright: ignore[reportArgumentType]


def gap_check(verdict: Verdict) -> tuple[Outcome, str]:
    [check] = [each for each in verdict.checks if each.kpi == "largest_gap"]
    return check.outcome, check.reason


def test_a_gain_that_one_group_pays_for_is_no_pass(tmp_path: Path, spec: DatasetSpec) -> None:
    champion = scores(tmp_path, "champion", 1.0, 1.0)
    unfair = verdict(spec, POLICY, scores(tmp_path, "unfair", 3.0, 0.9), champion)
    outcome, reason = gap_check(unfair)
    assert outcome is Outcome.FAIL
    assert "site=north to south" in reason
    fair = verdict(spec, POLICY, scores(tmp_path, "fair", 2.0, 2.0), champion)
    assert gap_check(fair)[0] is Outcome.PASS


def test_the_gap_lies_beside_the_groups_with_an_interval(tmp_path: Path, spec: DatasetSpec) -> None:
    found = groups_of(scores(tmp_path, "live", 2.0, 1.0), spec, POLICY, 30)
    north, south = (
        next(each for each in found if each.slice == f"site={name}") for name in ("north", "south")
    )
    [gap] = [each for each in found if each.name == "largest_gap"]
    assert gap.value == pytest.approx(north.value - south.value)
    assert gap.low < gap.value < gap.high
    assert gap.n == min(north.n, south.n)


def test_groups_that_are_too_small_make_no_gap(tmp_path: Path, spec: DatasetSpec) -> None:
    found = groups_of(scores(tmp_path, "live", 2.0, 1.0), spec, POLICY, WINDOWS + 1)
    assert {each.name for each in found} == {"auroc"}


def test_another_confidence_computes_the_gap_again_too(tmp_path: Path, spec: DatasetSpec) -> None:
    champion, challenger = scores(tmp_path, "champion", 1.0, 1.0), scores(tmp_path, "fair", 2.0, 1.6)
    references = {"champion": champion, "baseline": champion}
    stored = evaluate("steady", spec, POLICY, challenger, references)  # pyright: ignore[reportArgumentType]
    surer = POLICY.model_copy(update={"confidence": 0.999})
    [was], [would_be] = (
        [each for each in kpis if each.name == "largest_gap"]
        for kpis in (stored.kpis, task_kpis(stored, ["auroc"], surer))
    )
    assert would_be.value == was.value
    assert would_be.low < was.low < was.high < would_be.high
    told = Stored("run", spec.name, stored)
    [replayed] = backtest([told], surer)
    assert replayed.recomputed
    assert not replayed.problem
