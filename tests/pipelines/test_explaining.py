"""Explanations in the table's own words, and what was missed in every group."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.explaining import Explanation, cutoff_at, explain_window, missed_mass_kpis
from tests.tiny_rollout import write_policy
from validation.errors import InputError
from validation.kpis import Kpi
from validation.policy import Policy, load_policy

WHEN = datetime(2024, 4, 20, 12)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(write_policy(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def explained(pump: Windows, trained: dict[str, Checkpoint]) -> Explanation:
    return explain_window(trained["sparse"], pump, cutoff_at(pump, WHEN), 0.25, num_steps=80)


@pytest.mark.parametrize("minutes", [0, 30])
def test_a_window_has_seen_everything_up_to_the_time_given(pump: Windows, minutes: int) -> None:
    cutoff = cutoff_at(pump, WHEN + timedelta(minutes=minutes))
    assert pump.table["time"][cutoff - 1] == WHEN


@pytest.mark.parametrize(
    ("when", "entity", "words"),
    [
        (
            datetime(2024, 3, 15),
            None,
            "no window ends at 2024-03-15 00:00:00: possible are from 2024-03-17 15:",
        ),
        (datetime(2025, 1, 1), None, "to 2024-06-30 07:00:00"),
        (WHEN, "pomp", "unknown entity 'pomp': did you mean 'pump'"),
    ],
)
def test_a_window_that_is_none_is_one_line_that_says_which_there_are(
    pump: Windows, when: datetime, entity: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        cutoff_at(pump, when, entity)


def test_every_block_of_questions_accounts_for_all_its_attention(explained: Explanation) -> None:
    """16 hours are asked, in blocks of 8; three of ten blocks are read, by all heads: sharing a ranking."""
    assert [block.num_asked for block in explained.blocks] == [8, 8]
    assert (explained.cutoff, explained.blocks[0].first) == ("2024-04-20 12:00:00", "2024-04-20 13:00:00")
    for block in explained.blocks:
        assert (len(block.blocks), len(block.only_summarized)) == (3, 7)
        assert all(each.read_by == 1 for each in block.blocks)
        on_steps = sum(step.mass for step in block.steps)
        on_summaries = sum(each.mass for each in block.only_summarized)
        assert on_steps == pytest.approx(block.exact_mass)
        assert on_steps + on_summaries == pytest.approx(1.0)
        assert on_steps == pytest.approx(sum(each.mass for each in block.blocks))
        assert [step.mass for step in block.steps] == sorted((s.mass for s in block.steps), reverse=True)


def test_steps_are_rows_of_the_table_as_the_model_knew_them(explained: Explanation, pump: Windows) -> None:
    for step in (step for block in explained.blocks for step in block.steps):
        row = pump.table.row(step.row, named=True)
        assert str(row["time"]) == step.time
        assert (step.values["plan"], step.values["site"]) == (row["plan"], row["site"])
        is_past = row["time"] <= WHEN  # an outcome of the future is nothing that was read
        assert step.values["tripped"] == (row["tripped"] if is_past else None)


@pytest.fixture(scope="module")
def missed(pump: Windows, trained: dict[str, Checkpoint], policy: Policy) -> dict[tuple[str, str], Kpi]:
    kpis = missed_mass_kpis(trained["sparse"], pump, "test", 0.1, policy)
    return {(each.name, each.slice): each for each in kpis}


def test_what_was_missed_is_told_for_all_steps_and_in_every_group(
    missed: dict[tuple[str, str], Kpi], trained: dict[str, Checkpoint]
) -> None:
    assert {label for _, label in missed} == {"", "site=north", "site=south"}
    for each in missed.values():
        assert 0 < each.low <= each.value <= each.high < 1
        assert each.checkpoint == trained["sparse"].sha256
        assert (each.joint_low is None) == (each.slice == "")
    for label in ("", "site=north", "site=south"):
        assert missed["missed_mass", label].value < missed["unread_mass", label].value
    whole, *groups = (missed["missed_mass", label].value for label in ("", "site=north", "site=south"))
    assert min(groups) <= whole <= max(groups)


def test_a_larger_budget_misses_less_and_the_whole_misses_nothing(
    missed: dict[tuple[str, str], Kpi], pump: Windows, trained: dict[str, Checkpoint], policy: Policy
) -> None:
    half, whole = (missed_mass_kpis(trained["sparse"], pump, "test", share, policy) for share in (0.5, 1.0))
    for fewer, all_ in zip(half, whole, strict=True):
        assert fewer.value < missed[fewer.name, fewer.slice].value
        assert all_.value == pytest.approx(0.0, abs=1e-5)


def test_a_group_that_is_missed_more_is_seen(
    pump: Windows, trained: dict[str, Checkpoint], policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured masses, with half as much again wherever the site is the southern one."""
    from pipelines import explaining

    plain = explaining._audit

    def skewed(*arguments: object) -> explaining._Audited:
        found = plain(*arguments)  # pyright: ignore[reportArgumentType]
        south = found.slices["site"] == "south"
        return explaining._Audited(found.unread, found.missed * (1 + south / 2), found.mask, found.slices)

    monkeypatch.setattr(explaining, "_audit", skewed)
    kpis = missed_mass_kpis(trained["sparse"], pump, "test", 0.1, policy)
    found = {each.slice: each for each in kpis if each.name == "missed_mass"}
    south, north = found["site=south"], found["site=north"]
    assert south.joint_low is not None
    assert north.joint_high is not None
    assert south.joint_low > north.joint_high


def test_detection_is_audited_at_the_steps_it_scores(tmp_path: Path, policy: Policy) -> None:
    """Every step of a part is asked there, the lookback's of another part are not."""
    from pipelines.data.spec import load_spec
    from tests.tiny_rollout import train_tiny, windows_of, write_dataset

    changes = {
        "task": "detect",
        "target": ["load", "plan"],
        "known_future": None,
        "horizon": 0,
        "slices": ["entity"],
    }
    windows = windows_of(load_spec(write_dataset(tmp_path, **changes)), tmp_path)
    checkpoint, _ = train_tiny(windows, "sparse", tmp_path / "model")
    whole, *_ = missed_mass_kpis(checkpoint, windows, "test", 0.25, policy)
    assert 0 < whole.value < 1
    explanation = explain_window(checkpoint, windows, cutoff_at(windows, WHEN), 0.25)
    asked = sum(block.num_asked for block in explanation.blocks)
    start = np.datetime64(explanation.blocks[0].first)
    assert start >= np.datetime64("2024-04-15")  # the test part's first row
    assert asked == min(
        64, int((np.datetime64(WHEN) - np.datetime64("2024-04-15")).astype("timedelta64[h]").astype(int)) + 1
    )
