"""The second blessing: real MLflow models in real processes, right and wrong ones."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines import serving_check
from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.edge.bundle import Bundle
from pipelines.edge.measurement import EdgeTimings
from pipelines.edge.parity import ParityReport
from pipelines.judging import edge_kpis
from pipelines.serving_check import ServingCheck, ask_fresh_process, check_serving, kpis_of
from tests.tiny_rollout import ROOT, write_policy
from validation.evidence import Evidence
from validation.gates import Outcome, judge
from validation.kpis import Kpi
from validation.measured import MEASURED
from validation.policy import load_policy

PREPARED: Any = SimpleNamespace(snapshot=SimpleNamespace(content_hash="s"))
FINE = EdgeTimings(
    engine="compiled",
    num_steps=80,
    threads=1,
    load_ms=5,
    latency_ms=(1.0,) * 140,
    latency_p50_ms=1,
    latency_p99_ms=1,
    peak_memory_bytes=2**26,
)
ABOUT = {"checkpoint": "c", "snapshot": "s", "confidence": 0.95}


def check(checkpoint: Checkpoint, pump: Windows) -> ServingCheck:
    key = Ed25519PrivateKey.generate()
    return check_serving(checkpoint, pump, "test", 0.25, key=key, num_requests=40, threads=1)


def blessing(measured: ServingCheck, folder: Path) -> Outcome:
    """What the shipped policy's serving thresholds say of it, its 30 windows lowered to 20."""
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
    assert (served.num_requests, served.usable, served.failure) == (40, 40, "")
    assert max(served.errors) < 1e-4
    assert len(served.latency_ms) == 40
    assert min(served.latency_ms) > 0
    found = by_name(kpis_of(served, **ABOUT))
    assert set(found) == {"error_rate", "parity_max_abs_error", "latency_p90_ms"}
    assert found["error_rate"].value == 0
    latency = found["latency_p90_ms"]
    assert latency.low <= latency.value <= latency.high < float("inf")
    assert all(each.measured_at == served.measured_at != "" for each in found.values())
    assert blessing(served, tmp_path) is Outcome.PASS


def test_a_part_with_few_windows_is_timed_often_and_still_counts_its_windows(
    served: ServingCheck, pump: Windows
) -> None:
    """Sending a window twice tells twice how long it takes, and once whether the answer is right."""
    assert served.num_windows == len(pump.cutoffs("test")) < served.num_requests
    found = by_name(kpis_of(served, **ABOUT))
    assert found["parity_max_abs_error"].n == served.num_windows
    assert found["latency_p90_ms"].n == served.num_requests


def test_what_is_measured_where_it_serves_is_what_a_policy_may_ask(served: ServingCheck) -> None:
    assert by_name(kpis_of(served, **ABOUT)).keys() <= MEASURED["steady"].kpis
    of_groups = {"largest_gap"}  # measured with the scores
    assert by_name(edge_kpis(PREPARED, bundle(), [FINE], 0.95)).keys() == MEASURED["edge"].kpis - of_groups


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
    """One of forty is enough."""

    def answers(_: Path, requests: list, threads: int) -> tuple[dict, dict]:
        golden = serving_check.golden_answers(trained["sparse"], requests, 0.25)
        given = {**dict(enumerate(golden)), 7: answer(golden[7])}
        report = {"load_ms": 1.0, "latency_ms": [1.0] * len(golden), "failure": ""}
        return {index: each for index, each in given.items() if each is not None}, report

    monkeypatch.setattr(serving_check, "ask_fresh_process", answers)
    spoilt = check(trained["sparse"], pump)
    assert spoilt.usable == 39
    assert words in spoilt.failure
    assert blessing(spoilt, tmp_path) is Outcome.FAIL


def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving_check, "_TIMEOUT_S", 0.2)
    answers, report = ask_fresh_process(tmp_path, [], 1)
    assert answers == {}
    assert "no answer within 0.2 s" in report["failure"]
    assert json.loads(json.dumps(report["latency_ms"])) == []


def bundle() -> Bundle:
    parity = ParityReport(
        engine="compiled",
        precision="fp32",
        num_windows=30,
        density=0.25,
        max_abs_error=1e-6,
        window_errors=(1e-6,) * 30,
        same_blocks_error=0,
        tolerance=1,
        selection_equal=1,
        tie_gap=0,
        tie_tolerance=1,
        answer_tolerance=1,
    )
    return Bundle(
        folder="b", manifest_sha256="m", size_bytes=1, key_id="k", checkpoint="c", density=0.25, parity=parity
    )


def edge_blessing(timings: list[EdgeTimings]) -> tuple[Outcome, dict[str, Kpi]]:
    kpis = edge_kpis(PREPARED, bundle(), timings, 0.95)
    evidence = Evidence(checkpoint="c", snapshot="s", task_metric="auroc")
    rules = load_policy(ROOT / "infra" / "rollout.yaml").stage("edge")
    asked = rules.model_copy(update={"max_age_hours": None})
    return judge(kpis, asked, evidence).blessing("serving"), by_name(kpis)


def test_a_device_runtime_that_does_not_load_fails_the_blessing() -> None:
    """One of three processes that dies is enough; where all do, nothing but that is known of them."""
    dead = EdgeTimings.failed(1, "killed")
    assert edge_blessing([FINE] * 3)[0] is Outcome.PASS
    outcome, found = edge_blessing([FINE, dead, FINE])
    assert outcome is Outcome.FAIL
    assert found["error_rate"].value == pytest.approx(1 / 3)
    outcome, found = edge_blessing([dead] * 3)
    assert outcome is Outcome.FAIL
    assert found["error_rate"].value == 1
    assert not {"latency_p99_ms", "peak_memory_bytes"} & found.keys()
