"""The shipped policy loads, and a policy with a mistake is refused with the line it is on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from validation.errors import InputError
from validation.policy import STAGES, Approval, load_policy

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
    assert message.endswith(
        "stages.training.quality.3: unknown KPI 'seed_spraed': did you mean 'seed_spread'?"
    )


def test_an_unknown_key_is_refused_with_the_likely_one(refuse: Callable[..., str]) -> None:
    message = refuse("min_windows: 30", "min_window: 30", "min_window: 30")
    assert "min_window: unknown key 'min_window': did you mean 'min_windows'?" in message
    nested = refuse("at_most: 365", "atmost: 365", "atmost: 365")
    assert "stages.pilot.quality.5.atmost: unknown key 'atmost': did you mean 'at_most'?" in nested


def test_a_contradictory_bound_is_refused(refuse: Callable[..., str]) -> None:
    assert "use at_most" in refuse("at_most: 0.05", "at_least: 0.05", "kpi: seed_spread")
    assert "exactly one of" in refuse("at_most: 0.05", "at_most: 0.05\n        margin: 1", "kpi: seed_spread")


def test_a_missing_section_is_refused(refuse: Callable[..., str]) -> None:
    assert "cost.currency: missing" in refuse("  currency: USD\n", "", "cost: #")


def test_a_wrong_type_is_refused(refuse: Callable[..., str]) -> None:
    assert "not 'many'" in refuse("num_resamples: 1000", "num_resamples: many", "num_resamples: many")
    assert "confidence" in refuse("confidence: 0.95", "confidence: 95", "confidence: 95")


def test_a_key_given_twice_is_refused(refuse: Callable[..., str]) -> None:
    doubled = "currency: USD\n  currency: JPY"
    assert "given twice" in refuse("currency: USD", doubled, "currency: JPY")


def test_broken_yaml_is_refused(refuse: Callable[..., str]) -> None:
    assert "not readable as YAML" in refuse("confidence: 0.95", "confidence: [0.95", "looks: [0.8")


SECTIONS = {
    "quality": "[{kpi: auroc, at_least: 0.5}]",
    "serving": "[{kpi: error_rate, at_most: 0}]",
    "rollback": "[{kpi: error_rate, at_most: 0.01, windows: 3}]",
}


def write_stage(folder: Path, stage: str, sections: dict[str, str]) -> Path:
    """A policy with the least that each stage needs, and `sections` in place of one stage's."""
    stages = "".join(
        f"  {name}:\n"
        + "".join(f"    {key}: {value}\n" for key, value in (sections if name == stage else SECTIONS).items())
        for name in STAGES
    )
    tail = SHIPPED.read_text().partition("\ndrift:")
    head = "confidence: 0.95\nlooks: [1.0]\nnum_resamples: 100\nmin_windows: 1\nmin_timings: 1\n"
    path = folder / "rollout.yaml"
    path.write_text(f"{head}min_processes: 1\nmax_age_hours: 24\nstages:\n{stages}\n{tail[1]}{tail[2]}")
    return path


def refused_at(path: Path, words: str, line: str) -> None:
    """The refusal says `words` and names the line that starts with `line`."""
    with pytest.raises(InputError) as refused:
        load_policy(path)
    message = str(refused.value)
    assert words in message, message
    assert message.startswith(f"{path}:{line_of(path.read_text(), line)}: "), message


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_stage_with_an_empty_or_missing_section_is_refused(
    stage: str, section: str, tmp_path: Path
) -> None:
    load_policy(write_stage(tmp_path, stage, SECTIONS))
    empty = write_stage(tmp_path, stage, {**SECTIONS, section: "[] # here"})
    refused_at(empty, f"stages.{stage}.{section}: empty, name at least one", f"    {section}: [] # here")
    lacking = {name: content for name, content in SECTIONS.items() if name != section}
    path = write_stage(tmp_path, stage, lacking)
    refused_at(path, f"stages.{stage}.{section}: missing", f"  {stage}:")


NEVER_MEASURED = {
    "pilot": [
        ("seed_spread, at_most: 1", "the pilot stage never measures seed_spread; it measures task_metric"),
        ("latency_p50_ratio, at_most: 1, slice: 'worst:*'", "not measured by *: leave slice out"),
        ("average_precision, at_least: 0.1, slice: worst:site", "not measured by site: leave slice out"),
        ("latency_p99_ratio, margin: 1, versus: dense", "not compared with dense: give it a bound"),
    ],
    "training": [("latency_p99_ms, at_most: 1", "never measures latency_p99_ms")],
    "edge": [
        ("selection_recall, at_least: 0.5", "the edge stage never measures selection_recall"),
        ("task_metric, margin: 0, versus: champion", "compares with dense or baseline, never with champion"),
    ],
    "steady": [
        ("task_metric, margin: 0, versus: dense", "compares with champion or baseline, never with dense"),
        ("peak_memory_bytes, at_most: 1", "never measures peak_memory_bytes"),
    ],
}


@pytest.mark.parametrize(
    ("stage", "asked", "words"),
    [(stage, asked, words) for stage, cases in NEVER_MEASURED.items() for asked, words in cases],
)
def test_a_threshold_that_its_stage_never_measures_is_refused(
    stage: str, asked: str, words: str, tmp_path: Path
) -> None:
    """It could never pass, however good the candidate: the second threshold here is the mistaken one."""
    quality = "\n      - {kpi: auroc, at_least: 0.5}\n      - {kpi: " + asked + "} # here"
    path = write_stage(tmp_path, stage, {**SECTIONS, "quality": quality})
    refused_at(path, words, "      - {kpi: " + asked)
    with pytest.raises(InputError, match=rf"stages\.{stage}\.quality\.1: "):
        load_policy(path)


def test_the_groups_of_the_main_metric_and_of_the_ladder_may_be_asked_about(tmp_path: Path) -> None:
    for asked in ("mse, at_most: 1, slice: 'worst:*'", "canary_error_rate, at_most: 1, slice: worst:share"):
        load_policy(write_stage(tmp_path, "pilot", {**SECTIONS, "quality": "[{kpi: " + asked + "}]"}))


@pytest.mark.parametrize("section", ["quality", "serving"])
def test_a_stage_that_could_never_decide_is_refused(section: str, tmp_path: Path) -> None:
    watched = SECTIONS[section].replace("}", ", severity: dry_run}")
    path = write_stage(tmp_path, "edge", {**SECTIONS, section: watched})
    refused_at(path, "no threshold of severity required", f"    {section}: {watched}")


def test_the_same_question_twice_is_refused(tmp_path: Path) -> None:
    for section, asked in SECTIONS.items():
        doubled = f"{asked[:-1]}, {asked[1:]}"
        path = write_stage(tmp_path, "edge", {**SECTIONS, section: f"{doubled} # here"})
        refused_at(path, "twice of the same thing: keep one", f"    {section}: {doubled} # here")


@pytest.mark.parametrize(
    ("rollback", "words"),
    [
        ("[{kpi: seed_spread, at_most: 1, windows: 2}]", "does not change while a model is live"),
        ("[{kpi: task_metric, margin: 0, versus: champion, windows: 2}]", "what is live is the champion"),
        ("[{kpi: error_rate, at_most: 0.1, windows: 0}]", "greater than or equal to 1"),
        ("[{kpi: error_rate, at_most: 0.1}]", "windows: missing"),
        ("[{kpi: error_rate, at_least: 0.1, windows: 1}]", "use at_most"),
        ("[{kpi: error_rat, at_most: 0.1, windows: 1}]", "did you mean 'error_rate'"),
    ],
)
def test_a_rollback_rule_that_could_never_fire_is_refused(rollback: str, words: str, tmp_path: Path) -> None:
    path = write_stage(tmp_path, "edge", {**SECTIONS, "rollback": f"{rollback} # here"})
    refused_at(path, words, f"    rollback: {rollback} # here")


def test_who_approves_is_said_only_where_somebody_has_to(tmp_path: Path) -> None:
    assert load_policy(SHIPPED).approval("steady") is None
    plain = write_stage(tmp_path, "edge", {**SECTIONS, "approval": "required"})
    assert load_policy(plain).approval("edge") == Approval(
        approvers=1, trainer_may_approve=False, expires_hours=72.0
    )
    settings = {"approvers": "2", "trainer_may_approve": "true", "expires_hours": "8"}
    full = write_stage(tmp_path, "edge", {**SECTIONS, "approval": "required", **settings})
    assert load_policy(full).approval("edge") == Approval(
        approvers=2, trainer_may_approve=True, expires_hours=8.0
    )
    idle = write_stage(tmp_path, "edge", {**SECTIONS, **settings})
    refused_at(idle, "add approval: required", "  edge:")
    three = write_stage(tmp_path, "edge", {**SECTIONS, "approval": "required", "approvers": "3"})
    refused_at(three, "approvers", "    approvers: 3")


def test_payback_decides_once_the_prices_are_no_examples(tmp_path: Path) -> None:
    shipped = SHIPPED.read_text()
    for text, severity in (
        (shipped, "dry_run"),
        (shipped.replace("are_examples: true", "are_examples: false"), "required"),
    ):
        path = tmp_path / "rollout.yaml"
        path.write_text(text)
        [asked] = [each for each in load_policy(path).stage("pilot").thresholds if each.kpi == "payback_days"]
        assert asked.severity == severity


@pytest.mark.parametrize("shares", ["[]", "[0.5, 0.4]", "[1.0, 0.0]", "[0.9, 0.2, -0.1]"])
def test_looks_that_do_not_share_the_error_are_refused(shares: str, refuse: Callable[..., str]) -> None:
    assert "looks" in refuse("looks: [0.8, 0.1, 0.1]", f"looks: {shares}", f"looks: {shares}")


def test_a_missing_empty_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_policy(tmp_path / "nothing.yaml")
    for content in (b"", b"\xff\xfe\x00", b"- a\n- b\n", b"{1: 2}", b"a: &a [*a]"):
        path = tmp_path / "odd.yaml"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"odd\.yaml"):
            load_policy(path)
