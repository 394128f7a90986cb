"""The shipped policy loads, and a policy with a mistake is refused with the line it is on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from validation.errors import InputError
from validation.policy import STAGES, load_policy

SHIPPED = Path(__file__).parents[2] / "infra" / "rollout.yaml"


def test_the_shipped_policy_asks_for_something_at_every_stage() -> None:
    policy = load_policy(SHIPPED)
    assert STAGES == ("pilot", "training", "edge", "steady")
    for stage in STAGES:
        asked = policy.stage(stage)
        assert asked.stage == stage
        assert any(threshold.severity == "required" for threshold in asked.thresholds)
    assert policy.digest() == load_policy(SHIPPED).digest()


def line_of(text: str, words: str) -> int:
    (number,) = [number for number, line in enumerate(text.splitlines(), 1) if words in line]
    return number


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., str]:
    """Put a mistake into the shipped policy; returns the refusal, one line that names the mistaken line."""

    def refusal(old: str, new: str, at: str) -> str:
        text = SHIPPED.read_text()
        assert old in text
        spoiled = tmp_path / "rollout.yaml"
        spoiled.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError) as refused:
            load_policy(spoiled)
        message = str(refused.value)
        assert "\n" not in message
        assert message.startswith(f"{spoiled}:{line_of(spoiled.read_text(), at)}: "), message
        return message

    return refusal


def test_an_unknown_kpi_is_refused_where_it_stands(refuse: Callable[..., str]) -> None:
    message = refuse("kpi: seed_spread", "kpi: seed_spraed", "kpi: seed_spraed")
    assert message.endswith("stages.training.2: unknown KPI 'seed_spraed': did you mean 'seed_spread'?")


def test_an_unknown_key_is_refused_with_the_likely_one(refuse: Callable[..., str]) -> None:
    message = refuse("min_windows: 30", "min_window: 30", "min_window: 30")
    assert "min_window: unknown key 'min_window': did you mean 'min_windows'?" in message
    nested = refuse("at_most: 365", "atmost: 365", "atmost: 365")
    assert "stages.pilot.4.atmost: unknown key 'atmost': did you mean 'at_most'?" in nested


def test_a_contradictory_bound_is_refused(refuse: Callable[..., str]) -> None:
    assert "use at_most" in refuse("at_most: 0.05", "at_least: 0.05", "kpi: seed_spread")
    assert "exactly one of" in refuse("at_most: 0.05", "at_most: 0.05\n      margin: 1", "kpi: seed_spread")


def test_the_same_question_twice_is_refused(refuse: Callable[..., str]) -> None:
    double = "- kpi: seed_spread\n      at_most: 0.1\n    - kpi: seed_spread"
    assert "stage training asks seed_spread twice" in refuse("- kpi: seed_spread", double, "stages:")


def test_a_missing_section_is_refused(refuse: Callable[..., str]) -> None:
    assert "cost.currency: missing" in refuse("  currency: USD\n", "", "cost: #")


def test_a_wrong_type_is_refused(refuse: Callable[..., str]) -> None:
    assert "not 'many'" in refuse("num_resamples: 1000", "num_resamples: many", "num_resamples: many")
    assert "confidence" in refuse("confidence: 0.95", "confidence: 95", "confidence: 95")


def test_a_key_given_twice_is_refused(refuse: Callable[..., str]) -> None:
    doubled = "currency: USD\n  currency: JPY"
    assert "given twice" in refuse("currency: USD", doubled, "currency: JPY")


def test_broken_yaml_is_refused(refuse: Callable[..., str]) -> None:
    assert "not readable as YAML" in refuse("confidence: 0.95", "confidence: [0.95", "num_resamples: 1000")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("content", ["[]", "", "[{kpi: auroc, at_least: 0.5, severity: warn}]"])
def test_a_stage_that_could_never_decide_is_refused(stage: str, content: str, tmp_path: Path) -> None:
    sections = "".join(f"  {name}: [{{kpi: auroc, at_least: 0.5}}]\n" for name in STAGES if name != stage)
    tail = SHIPPED.read_text().partition("\ndrift:")
    head = "confidence: 0.95\nnum_resamples: 100\nmin_windows: 1\nmin_timings: 1\nmin_processes: 1\n"
    path = tmp_path / "rollout.yaml"
    path.write_text(f"{head}stages:\n{sections}  {stage}: {content}\n{tail[1]}{tail[2]}")
    with pytest.raises(InputError, match=rf"rollout.yaml:\d+: stages.*{stage}"):
        load_policy(path)


def test_a_missing_empty_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_policy(tmp_path / "nothing.yaml")
    for content in (b"", b"\xff\xfe\x00", b"- a\n- b\n", b"{1: 2}"):
        path = tmp_path / "odd.yaml"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"odd\.yaml"):
            load_policy(path)
