"""Cost: fresh processes in turns."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoint import Checkpoint
from pipelines.cost import CostComparison, Subject, compare_cost, measure_turns
from tests.tiny_rollout import ROOT, write_policy
from validation.errors import InputError
from validation.policy import Policy, load_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(write_policy(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def sides(trained: dict[str, Checkpoint]) -> tuple[Subject, Subject]:
    sparse = Subject(name="candidate", folder=trained["sparse"].folder, density=0.25)
    return sparse, Subject(name="dense", folder=trained["dense"].folder)


@pytest.fixture(scope="module")
def compared(sides: tuple[Subject, Subject], policy: Policy) -> CostComparison:
    return compare_cost(*sides, 200, repeats=7, processes=2, threads=1, policy=policy)


def test_both_sides_are_measured_as_often_in_processes_of_their_own(compared: CostComparison) -> None:
    for side in (compared.candidate, compared.dense):
        assert len(side.latency_ms) == 14
        assert len(side.memory_bytes) == 2
        assert min(side.latency_ms) > 0
        assert min(side.memory_bytes) > 50e6  # a process with torch in it
    assert compared.candidate.density == 0.25
    assert compared.dense.density is None


def test_ratios_come_with_intervals_around_them(compared: CostComparison) -> None:
    for ratio in (compared.latency_p50_ratio, compared.latency_p99_ratio, compared.peak_memory_ratio):
        assert 0 < ratio.low <= ratio.value <= ratio.high
    assert compared.latency_p50_ratio.n == 14
    assert compared.peak_memory_ratio.n == 2


def test_a_model_against_itself_costs_the_same_memory(sides: tuple[Subject, Subject], policy: Policy) -> None:
    _, dense = sides
    same = compare_cost(dense, dense, 200, repeats=1, processes=2, threads=1, policy=policy)
    assert same.peak_memory_ratio.value == pytest.approx(1.0, abs=0.05)


def test_the_sides_take_turns_of_a_few_inferences(
    monkeypatch: pytest.MonkeyPatch, sides: tuple[Subject, Subject]
) -> None:
    asked: list[tuple[str, int]] = []

    class Probe:
        def __init__(self, subject: Subject, *_: Any) -> None:
            self.name = subject.name

        def __enter__(self) -> "Probe":
            return self

        def __exit__(self, *_: object) -> None: ...

        def wait_until_warm(self) -> None:
            asked.append((self.name, 0))

        def ask(self, repeats: int) -> dict[str, list[float]]:
            asked.append((self.name, repeats))
            return {"latency_ms": [1.0] * repeats, "memory_bytes": [1.0]}

    monkeypatch.setattr("pipelines.cost._Probe", Probe)
    measure_turns(sides, 200, 12, 1, 1)
    one_turn = [("candidate", 5), ("dense", 5)]
    assert asked == [("candidate", 0), ("dense", 0), *one_turn, *one_turn, ("candidate", 2), ("dense", 2)]


def test_a_process_that_dies_is_one_line_with_its_last_word(
    sides: tuple[Subject, Subject], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((Path(sides[0].folder) / "config.json").read_text())
    with pytest.raises(InputError) as caught:
        measure_turns([Subject(name="candidate", folder=str(tmp_path))], 100, 1, 1, 1)
    said = str(caught.value)
    assert said.startswith("candidate: its timing process died (")
    assert "model.safetensors" in said
    assert "\n" not in said


def test_a_probe_ends_with_the_one_who_asked_it(sides: tuple[Subject, Subject]) -> None:
    request = {"folder": sides[1].folder, "density": None, "num_steps": 50, "threads": 1, "device": "cpu"}
    command = [sys.executable, "-m", "pipelines.cost_probe", json.dumps(request)]
    done = subprocess.run(command, input="3\n", capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    assert len(answer["latency_ms"]) == 3
