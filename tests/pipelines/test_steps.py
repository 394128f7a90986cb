"""A step is done once; a killed command goes on where it stopped; a broken record is never believed."""

import json
import logging
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import steps
from pipelines.steps import once, step_key
from validation.record import Record


class Score(Record):
    value: float
    files: tuple[str, ...] = ()

    def artifact_paths(self) -> tuple[str, ...]:
        return self.files


class Counter:
    """A computation that knows how often it ran."""

    def __init__(self, value: float = 1.0, files: tuple[str, ...] = ()) -> None:
        self.calls = 0
        self.result = Score(value=value, files=files)

    def __call__(self) -> Score:
        self.calls += 1
        return self.result


def test_the_same_inputs_are_computed_once(tmp_path: Path) -> None:
    compute = Counter()
    inputs = {"data": "abc", "config": Score(value=2.0), "seeds": (1, 2)}
    results = [once(tmp_path, "train", inputs, Score, compute) for _ in range(3)]
    assert compute.calls == 1
    assert results == [compute.result] * 3


def test_another_input_another_name_or_other_code_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Counter()
    once(tmp_path, "train", {"seed": 1}, Score, compute)
    once(tmp_path, "train", {"seed": 2}, Score, compute)
    once(tmp_path, "evaluate", {"seed": 1}, Score, compute)
    monkeypatch.setattr(steps, "code_digest", lambda: "other source")
    once(tmp_path, "train", {"seed": 1}, Score, compute)
    assert compute.calls == 4


def test_a_list_of_records_and_values_that_are_no_numbers_survive(tmp_path: Path) -> None:
    def compute() -> list[Score]:
        return [Score(value=math.nan), Score(value=math.inf), Score(value=-0.1)]

    once(tmp_path, "score", {}, list[Score], compute)
    again = once(tmp_path, "score", {}, list[Score], lambda: pytest.fail("it was stored"))
    assert math.isnan(again[0].value)
    assert [score.value for score in again[1:]] == [math.inf, -0.1]


def test_a_record_cut_short_anywhere_counts_as_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute = Counter()
    once(tmp_path, "train", {}, Score, compute)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    for size in range(len(whole) - 1):  # the last byte is the newline
        path.write_bytes(whole[:size])
        assert once(tmp_path, "train", {}, Score, compute) == compute.result
    assert compute.calls == len(whole)
    assert "computing it again" in caplog.text


@pytest.mark.parametrize("foreign", ["null", "[]", "{}", '{"key": 1}', "\x00\x00", "not JSON"])
def test_a_foreign_file_counts_as_absent(tmp_path: Path, foreign: str) -> None:
    compute = Counter()
    once(tmp_path, "train", {}, Score, compute)
    [path] = tmp_path.iterdir()
    path.write_text(foreign)
    once(tmp_path, "train", {}, Score, compute)
    once(tmp_path, "train", {}, Score, compute)
    assert compute.calls == 2


def test_an_edited_number_is_not_believed(tmp_path: Path) -> None:
    compute = Counter(value=0.5)
    once(tmp_path, "train", {}, Score, compute)
    [path] = tmp_path.iterdir()
    envelope = json.loads(path.read_text())
    envelope["record"]["value"] = 0.9
    path.write_text(json.dumps(envelope))
    assert once(tmp_path, "train", {}, Score, compute).value == 0.5


def test_a_signed_step_is_done_again_where_somebody_else_wrote_it_or_it_was_written_for_another(
    tmp_path: Path,
) -> None:
    keys, steps_of = tmp_path / "keys", tmp_path / "steps"
    compute = Counter(value=0.5)
    for _ in range(2):
        once(steps_of, "judge", {}, Score, compute, keys=keys)
    assert compute.calls == 1
    [path] = steps_of.iterdir()
    path.unlink()
    once(steps_of, "judge", {}, Score, Counter(value=0.9), keys=tmp_path / "theirs")  # whole, and not ours
    assert once(steps_of, "judge", {}, Score, compute, keys=keys).value == 0.5
    once(steps_of, "judge", {"month": 2}, Score, Counter(value=0.9), keys=keys)
    [other] = set(steps_of.iterdir()) - {path}
    moved = json.loads(other.read_text()) | {"key": json.loads(path.read_text())["key"]}
    path.write_text(json.dumps(moved))
    assert once(steps_of, "judge", {}, Score, compute, keys=keys).value == 0.5
    assert compute.calls == 3


def test_a_step_whose_file_is_gone_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"weights")
    compute = Counter(files=(str(weights),))
    for _ in range(2):
        once(tmp_path / "steps", "train", {}, list[Score], lambda: [compute()])
    assert compute.calls == 1
    weights.unlink()
    once(tmp_path / "steps", "train", {}, list[Score], lambda: [compute()])
    assert compute.calls == 2
    assert "weights.bin is gone" in caplog.text


def test_a_step_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        once(tmp_path, "train", {}, Score, lambda: Score(value=1 / 0))
    assert list(tmp_path.glob("**/*.json")) == []


def test_what_cannot_be_an_input_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="serialize"):
        once(tmp_path, "train", {"model": object()}, Score, Counter())


@given(st.dictionaries(st.text(), st.integers() | st.floats() | st.text() | st.lists(st.integers())))
def test_the_order_of_inputs_does_not_matter_and_their_content_does(inputs: dict[str, object]) -> None:
    assert step_key("train", inputs) == step_key("train", dict(reversed(inputs.items())))
    assert step_key("train", inputs) != step_key("train", {**inputs, "one more": 1})


PIPELINE = """
import os, signal, sys
from pathlib import Path
from pipelines.steps import once
from validation.record import Record

class Done(Record):
    step: int

folder, when = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

def compute(step):
    with open(folder / "journal", "a") as journal:
        print(step, file=journal)
    if step == 2 and when == "computing":
        die()
    if step == 2 and when == "before the rename":
        os.replace = die
    if step == 2 and when == "writing":
        os.fsync = die
    return Done(step=step)

before = ""
for step in (1, 2, 3):
    before = once(folder / "steps", f"step {step}", {"before": before}, Done, lambda: compute(step)).digest()
print("finished")
"""


@pytest.mark.parametrize("when", ["computing", "writing", "before the rename"])
def test_after_kill_9_the_same_command_goes_on_from_the_last_finished_step(tmp_path: Path, when: str) -> None:
    def run(death: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PIPELINE, str(tmp_path), death], capture_output=True, text=True, timeout=60
        )

    assert run(when).returncode == -signal.SIGKILL
    assert run("never").stdout == "finished\n"
    assert (tmp_path / "journal").read_text().split() == ["1", "2", "2", "3"]
    assert run("never").stdout == "finished\n"
    assert (tmp_path / "journal").read_text().split() == ["1", "2", "2", "3"]


def test_a_record_found_again_is_not_worth_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        once(tmp_path, "train", {}, Score, Counter())
        once(tmp_path, "train", {}, Score, Counter())
    assert caplog.text == ""
