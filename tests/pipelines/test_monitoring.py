"""A live model that breaks its bound often enough is taken back, by the monitor, once."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from pipelines import monitoring
from pipelines.decisions import apply_verdict
from pipelines.monitoring import (
    Alert,
    Observation,
    alert_file,
    observations,
    observe,
    open_alert,
    roll_back_if_breached,
)
from pipelines.release_log import ReleaseLog, Stage
from pipelines.rollout import CLIMB, current_state
from pipelines.settings import Settings, load_settings
from tests.release_cases import ADA, DATASET, climbed, started, verdict, version
from validation.errors import InputError
from validation.kpis import kpi
from validation.policy import Policy, load_policy
from validation.statistics import Interval

POLICY = Path(__file__).parents[2] / "infra" / "rollout.yaml"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"DANKAI_HOME": str(tmp_path)})


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(POLICY)


def seen(settings: Settings, rates: Sequence[float], checkpoint: str = "weights 3", n: int = 1000) -> None:
    """One window after the other with these shares of requests that got no answer."""
    for number, rate in enumerate(rates, start=1):
        measured = Interval(value=rate, low=rate, high=rate, n=n)
        value = kpi("error_rate", measured, checkpoint=checkpoint, snapshot="data")
        observe(
            settings,
            DATASET,
            Observation(window=f"2026-03-{number:02}", checkpoint=checkpoint, kpis=(value,)),
        )


def test_three_bad_windows_in_a_row_take_the_model_back_and_no_fewer(
    settings: Settings, policy: Policy
) -> None:
    log = ReleaseLog.open(settings)
    climbed(log)
    check = partial(roll_back_if_breached, log, settings, DATASET, policy, "auroc")
    seen(settings, [0.5, 0.5])
    assert check() is None
    seen(settings, [0.5, 0.5, 0.0, 0.5, 0.5])
    assert check() is None
    seen(settings, [0.5, 0.5, 0.0, 0.5, 0.5, 0.5])
    after = check()
    assert after is not None
    assert after.champion == 2
    decision = log.entries()[-1].decision
    assert (decision.action, decision.actor, decision.automatic) == ("rollback", "monitor", True)
    assert (
        "error_rate broke its bound in 3 windows, with none between that kept it: 0.5 (allowed"
        in decision.reason
    )
    assert check() is None  # what was seen was seen of the model that is gone
    assert current_state(log, DATASET) == after


def test_a_window_that_is_looked_at_again_counts_once(settings: Settings, policy: Policy) -> None:
    log = ReleaseLog.open(settings)
    climbed(log)
    for _ in range(3):
        seen(settings, [0.5])
    assert len(observations(settings, DATASET)) == 1
    assert roll_back_if_breached(log, settings, DATASET, policy, "auroc") is None


@pytest.mark.parametrize(("checkpoint", "n"), [("weights 2", 1000), ("weights 3", 1)])
def test_windows_of_another_model_or_with_too_few_requests_prove_nothing(
    checkpoint: str, n: int, settings: Settings, policy: Policy
) -> None:
    log = ReleaseLog.open(settings)
    climbed(log)
    seen(settings, [0.5] * 3, checkpoint, n)
    assert roll_back_if_breached(log, settings, DATASET, policy, "auroc") is None


def test_where_there_is_no_way_back_a_person_has_to_decide(
    settings: Settings, policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    log = ReleaseLog.open(settings)
    assert roll_back_if_breached(log, settings, DATASET, policy, "auroc") is None
    started(log)
    seen(settings, [0.5] * 3, "weights 1")
    before = log.entries()
    assert roll_back_if_breached(log, settings, DATASET, policy, "auroc") is None  # the caller goes on
    assert log.entries() == before
    assert "version 1: error_rate broke its bound" in caplog.text
    assert "no earlier release to go back to: a person has to decide" in caplog.text
    alert = Alert.model_validate_json(alert_file(settings, DATASET).read_bytes())
    assert (alert.version, alert.checkpoint) == (1, "weights 1")
    assert open_alert(settings, before, DATASET) == alert
    apply_verdict(log, current_state(log, DATASET), version(2), verdict("pilot", 2), ADA)
    assert open_alert(settings, log.entries(), DATASET) is None  # it was about what was live then


def test_a_model_that_is_let_in_again_is_judged_by_what_it_does_from_then_on(
    settings: Settings, policy: Policy
) -> None:
    log = ReleaseLog.open(settings)
    climbed(log)
    check = partial(roll_back_if_breached, log, settings, DATASET, policy, "auroc")
    seen(settings, [0.5] * 3)
    after = check()
    assert after is not None
    time.sleep(0.002)  # times are told to the millisecond
    for stage in ("training", "edge")[CLIMB.index(after.stage) - CLIMB.index(Stage.TRAINING) :]:
        after = apply_verdict(log, after, version(3), verdict(stage, 3), ADA)
    assert after.champion == 3
    assert check() is None
    seen(settings, [0.5] * 5)  # three of these are the windows from before, looked at again
    assert check() is None
    seen(settings, [0.5] * 6)
    again = check()
    assert again is not None
    assert again.champion == 2


def test_of_thousands_of_windows_the_newest_stay_and_every_month_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "_KEPT", 3)
    seen(settings, [0.0])
    for second in range(5):
        observe(
            settings,
            DATASET,
            Observation(window=f"2026-04-01T00:00:0{second}", checkpoint="weights 3", kpis=()),
        )
    kept = [each.window for each in observations(settings, DATASET)]
    assert kept == ["2026-03-01", *(f"2026-04-01T00:00:0{second}" for second in (2, 3, 4))]


def test_a_damaged_observation_is_named(settings: Settings) -> None:
    seen(settings, [0.5])
    [path] = (settings.home / "datasets" / DATASET / "observations").iterdir()
    path.write_text("{")
    with pytest.raises(InputError, match="not a whole observation; remove it"):
        observations(settings, DATASET)


def test_what_takes_models_back_is_not_for_everybody_to_write(settings: Settings) -> None:
    """Neither edited, nor carried over from another dataset."""
    seen(settings, [0.0])
    [path] = (settings.home / "datasets" / DATASET / "observations").iterdir()
    genuine = path.read_text()
    path.write_text(genuine.replace('"high": 0.0', '"high": 0.5'))
    assert path.read_text() != genuine
    elsewhere = settings.home / "datasets" / "etth1" / "observations" / path.name
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(genuine)
    for dataset in (DATASET, "etth1"):
        with pytest.raises(InputError, match="its signature does not hold; remove it"):
            observations(settings, dataset)
