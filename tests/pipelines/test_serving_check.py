"""The second blessing: real MLflow models in real processes, right and wrong ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines import serving_check
from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.serving_check import ServingCheck, ask_fresh_process, check_serving, kpis_of
from tests.tiny_rollout import write_policy
from validation.evidence import Evidence
from validation.gates import Outcome, judge
from validation.kpis import Kpi
from validation.policy import load_policy

ABOUT = {"checkpoint": "c", "snapshot": "s", "confidence": 0.95}


def check(checkpoint: Checkpoint, pump: Windows) -> ServingCheck:
    key = Ed25519PrivateKey.generate()
    return check_serving(checkpoint, pump, "test", 0.25, key=key, num_requests=20, threads=1)


def blessing(measured: ServingCheck, folder: Path) -> Outcome:
    """What the shipped policy's serving thresholds say of it, its 30 requests lowered to these 20."""
    rules = load_policy(write_policy(folder)).stage("training")
    evidence = Evidence(checkpoint="c", snapshot="s", task_metric="auroc")
    strict = [t.model_copy(update={"at_most": 0.0 if t.kpi == "error_rate" else 1e3}) for t in rules.serving]
    asked = rules.model_copy(update={"serving": tuple(strict), "max_age_hours": None})
    return judge(kpis_of(measured, **ABOUT), asked, evidence).blessing("serving")


def by_name(kpis: list[Kpi]) -> dict[str, Kpi]:
    return {each.name: each for each in kpis}


@pytest.fixture(scope="module")
def served(trained: dict[str, Checkpoint], pump: Windows) -> ServingCheck:
    return check(trained["sparse"], pump)


def test_a_fresh_process_answers_as_the_judged_weights_do(served: ServingCheck, tmp_path: Path) -> None:
    assert (served.num_requests, served.usable, served.failure) == (20, 20, "")
    assert max(served.errors) < 1e-4
    assert len(served.latency_ms) == 20
    assert min(served.latency_ms) > 0
    found = by_name(kpis_of(served, **ABOUT))
    assert set(found) == {"error_rate", "parity_max_abs_error", "latency_p99_ms"}
    assert found["error_rate"].value == 0
    assert found["latency_p99_ms"].low <= found["latency_p99_ms"].value <= found["latency_p99_ms"].high
    assert blessing(served, tmp_path) is Outcome.PASS


def test_weights_that_do_not_load_fail_the_blessing(
    trained: dict[str, Checkpoint], pump: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved model loses its weights on the way: the process that would serve it dies."""
    whole = serving_check.ask_fresh_process

    def lost(model: Path, *rest: object) -> object:
        (model / "artifacts" / "model.safetensors").write_bytes(b"")
        return whole(model, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(serving_check, "ask_fresh_process", lost)
    broken = check(trained["sparse"], pump)
    assert (broken.usable, broken.errors, broken.latency_ms) == (0, (), ())
    assert broken.failure
    assert by_name(kpis_of(broken, **ABOUT))["error_rate"].value == 1
    assert blessing(broken, tmp_path) is Outcome.FAIL


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda good: good[:, :-1], "in shape (1, 79, 1), not (1, 80, 1)"),
        (lambda good: good * np.nan, "what is no number"),
        (lambda _: None, "was not answered"),
    ],
)
def test_an_answer_of_the_wrong_shape_or_no_number_or_none_fails(
    answer, words: str, trained: dict[str, Checkpoint], pump: Windows, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One of twenty is enough."""

    def answers(_: Path, requests: list, threads: int) -> tuple[dict, dict]:
        golden = serving_check.golden_answers(trained["sparse"], requests, 0.25)
        given = {**dict(enumerate(golden)), 7: answer(golden[7])}
        report = {"load_ms": 1.0, "latency_ms": [1.0] * len(golden), "failure": ""}
        return {index: each for index, each in given.items() if each is not None}, report

    monkeypatch.setattr(serving_check, "ask_fresh_process", answers)
    spoilt = check(trained["sparse"], pump)
    assert spoilt.usable == 19
    assert words in spoilt.failure
    assert blessing(spoilt, tmp_path) is Outcome.FAIL


def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving_check, "_TIMEOUT_S", 0.2)
    answers, report = ask_fresh_process(tmp_path, [], 1)
    assert answers == {}
    assert "no answer within 0.2 s" in report["failure"]
    assert json.loads(json.dumps(report["latency_ms"])) == []
