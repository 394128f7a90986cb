"""What real requests said, as a gate gets to hear it: never a pass without them, nor after a breach."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipelines.release_log import Stage
from pipelines.rollout import Release, RolloutState, opponent
from pipelines.serving.comparison import canary_kpis, pair_folder
from pipelines.serving.ladder import Ladder
from pipelines.serving.store import Exchange, Exchanges
from pipelines.settings import Settings, load_settings
from pipelines.signing import load_key, trusted_keys
from validation.canary import CanaryPolicy
from validation.errors import InputError
from validation.gates import Evidence, Outcome, judge
from validation.kpis import Kpi
from validation.policy import load_policy

LIVE, TRIED = "a" * 64, "b" * 64
POLICY = CanaryPolicy(shares=(0.0, 0.05), min_requests=30, max_error_rate=0.2)
NEEDED = 450
"""Requests without an error that a bound of 1% takes, and some."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"DANKAI_HOME": str(tmp_path)})


class Pilot:
    """A pair whose requests the test makes up; ladder and store are the real ones."""

    def __init__(self, settings: Settings) -> None:
        self.folder = pair_folder(settings, "pump", LIVE, TRIED)
        key = load_key(settings.keys, {})
        self.ladder = Ladder(
            self.folder / "ladder.jsonl", (LIVE, TRIED), POLICY, key, trusted_keys(settings.keys), "ada"
        )
        self.exchanges = Exchanges(self.folder / "exchanges.sqlite3")
        self.asked = 0

    def ask(self, count: int, fault: str = "") -> None:
        for _ in range(count):
            self.asked += 1
            exchange = Exchange(
                id=f"caller-{self.asked}",
                move=self.ladder.last.sequence,
                share=self.ladder.share,
                assigned=True,
                fault=fault,
                incumbent_fault="",
                disagreement=None if fault else 0.001,
                incumbent_seconds=0.01,
                candidate_seconds=None if fault else 0.005,
                request=b"",
                incumbent=b"",
                candidate=b"",
            )
            self.exchanges.add(exchange)
            moved = self.ladder.add(exchange.pair, exchange.move)
            if moved is not None:
                self.exchanges.note_move(moved.sequence)


@pytest.fixture
def pilot(settings: Settings) -> Pilot:
    return Pilot(settings)


Said = Callable[[], list[Kpi]]


@pytest.fixture
def said(settings: Settings) -> Said:
    return partial(
        canary_kpis,
        settings,
        "pump",
        candidate=TRIED,
        incumbent=LIVE,
        snapshot="data",
        confidence=0.96,  # what the first look of the shipped policy asks for
        min_requests=100,
    )


def outcomes(kpis: list[Kpi]) -> list[Outcome]:
    """Of the pilot's own three demands, each of them required."""
    shipped = load_policy(Path(__file__).parents[3] / "infra" / "rollout.yaml").stage("pilot")
    asked = [
        threshold.model_copy(update={"severity": "required"})
        for threshold in shipped.thresholds
        if threshold.kpi in ("canary_error_rate", "shadow_disagreement", "canary_latency_ratio")
    ]
    assert len(asked) == 3
    evidence = Evidence.model_validate({"checkpoint": TRIED, "snapshot": "data", "task_metric": "auroc"})
    ageless = shipped.model_copy(update={"serving": (), "max_age_hours": None})
    each_alone = [ageless.model_copy(update={"thresholds": (one,)}) for one in asked]
    return [judge(kpis, policy, evidence).outcome for policy in each_alone]


def test_a_required_kpi_holds_without_requests_passes_after_clean_ones_and_never_after_a_breach(
    pilot: Pilot, said: Said
) -> None:
    assert outcomes(said()) == [Outcome.HOLD] * 3
    pilot.ask(99)
    assert said() == []  # the ladder's own number of requests is asked for, not only that of windows
    pilot.ask(NEEDED)
    assert outcomes(said()) == [Outcome.PASS] * 3
    pilot.ask(3, "died: its process ended")
    assert pilot.ladder.is_breached
    fallen = outcomes(said())
    assert fallen[:2] == [Outcome.FAIL] * 2
    assert Outcome.PASS not in fallen


def test_three_faults_at_the_very_start_are_no_pass_either(pilot: Pilot, said: Said) -> None:
    pilot.ask(3, "nan: it answered NaN or infinity")
    assert pilot.ladder.is_breached
    assert len(said()) == 3
    assert Outcome.PASS not in outcomes(said())


def test_moves_that_were_cut_off_or_belong_to_others_are_refused(pilot: Pilot, said: Said) -> None:
    pilot.ask(NEEDED)
    pilot.ask(3, "died: its process ended")
    path = pilot.folder / "ladder.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # the breach is gone
    with pytest.raises(InputError, match=r"holds \d moves of \d; restore it from a backup"):
        said()
    path.write_bytes(b"".join(lines))
    pilot.folder.rename(pilot.folder.with_name(f"{'c' * 16}-{TRIED[:16]}"))
    with pytest.raises(InputError, match="moves of other models"):
        said(incumbent="c" * 64)  # type: ignore[call-arg]


def test_looking_makes_no_file_and_a_damaged_one_is_one_line(pilot: Pilot, said: Said) -> None:
    pilot.ask(NEEDED)
    pilot.exchanges.close()
    path = pilot.folder / "exchanges.sqlite3"
    before = path.read_bytes()
    assert said()
    assert path.read_bytes() == before
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"exchanges.sqlite3: not readable \(.*\); restore it") as caught:
        said()
    assert "\n" not in str(caught.value)
    path.unlink()
    assert said() == []
    assert not path.exists()


def test_evidence_counts_against_what_is_live_or_was_when_the_candidate_went_live() -> None:
    def state(*checkpoints: str) -> RolloutState:
        releases = tuple(
            Release(stage=Stage.PILOT, champion=number, checkpoint=each, snapshot="data")
            for number, each in enumerate(checkpoints)
        )
        return RolloutState(dataset="pump", releases=releases)

    assert opponent(state("x", LIVE), TRIED) == LIVE
    assert opponent(state("x", LIVE, TRIED, "y"), TRIED) == LIVE
    assert opponent(state(TRIED), TRIED) == opponent(state(), TRIED) == ""
