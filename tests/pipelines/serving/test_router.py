"""Whatever the candidate does, the caller is answered: real models in real processes, killed and stopped."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.serving.backend import Backend, Nursery
from pipelines.serving.comparison import Comparison
from pipelines.serving.ladder import Ladder, Move
from pipelines.serving.requests import Request
from pipelines.serving.router import Candidate, Router
from pipelines.serving.store import Exchanges
from validation.canary import CanaryPolicy

KEY = Ed25519PrivateKey.generate()
SECONDS = 3.0
"""The candidate's deadline: long enough for a busy machine, where it is not the point."""
ALL = CanaryPolicy(shares=(0.0, 1.0), max_error_rate=0.99, max_latency_ratio=1e6)
Trial = Callable[..., Router]


@pytest.fixture
def trial(incumbent: Backend, candidate: Backend, tmp_path: Path) -> Trial:
    """A router with the candidate at `share` of the callers."""

    def begin(
        share: float, backend: Backend = candidate, policy: CanaryPolicy = ALL, seconds: float = SECONDS
    ) -> Router:
        backend.wait_until_ready(30)
        ladder = Ladder(tmp_path / "ladder.jsonl", ("i" * 64, "c" * 64), policy, KEY, {}, "ada")
        if share:
            ladder._move("climb", share, "the test begins here", None)
        tried = Candidate(backend, ladder, Exchanges(tmp_path / "exchanges.sqlite3"), seconds)
        return Router(incumbent, tried, Comparison("event", 16))

    return begin


def predictions(body: bytes) -> np.ndarray:
    return np.array(json.loads(body)["predictions"])


def ladder_of(router: Router) -> Ladder:
    assert router.candidate is not None
    return router.candidate.ladder


def faults_of(router: Router) -> list[str]:
    router.settle()
    assert router.candidate is not None
    assert router.num_uncompared == 0
    return [pair.fault.split(":")[0] for pair in router.candidate.exchanges.pairs()]


def assert_answered_by_incumbent(router: Router, incumbent: Backend, request: Request) -> None:
    reply = router.answer(request)
    assert (reply.status, reply.by) == (200, "incumbent")
    np.testing.assert_array_equal(predictions(reply.body), predictions(incumbent.ask(request.body, 30).body))


def test_in_shadow_every_caller_gets_the_incumbents_answer_and_both_are_kept(
    trial: Trial, incumbent: Backend, candidate: Backend, questions: list[Request]
) -> None:
    router = trial(0.0)
    for question in questions[:5]:
        assert_answered_by_incumbent(router, incumbent, question)
    assert faults_of(router) == [""] * 5
    assert router.candidate is not None
    kept = router.candidate.exchanges.bodies(questions[0].id)
    assert kept is not None
    request, by_incumbent, by_candidate = kept
    assert request == questions[0].body
    ours, theirs = (1 / (1 + np.exp(-predictions(body)[:, -16:])) for body in (by_candidate, by_incumbent))
    [first, *_] = router.candidate.exchanges.pairs()
    assert first.disagreement == pytest.approx(np.abs(ours - theirs).mean())
    assert first.disagreement != 0
    assert first.latency_ratio is not None


def test_the_hash_of_the_request_id_decides_who_answers(
    trial: Trial, candidate: Backend, questions: list[Request]
) -> None:
    router = trial(0.25)
    for number in range(24):
        request = Request(f"caller-{number}", questions[number % len(questions)].body)
        reply = router.answer(request)
        assert reply.by == ("candidate" if request.falls_into(0.25) else "incumbent")
        if reply.by == "candidate":
            assert reply.body == candidate.ask(request.body, 30).body
    assert faults_of(router) == [""] * 24
    assert 0 < sum(pair.assigned for pair in router.candidate.exchanges.pairs()) < 12  # type: ignore[union-attr]


def test_a_share_takes_its_part_of_the_callers_and_keeps_those_it_has() -> None:
    requests = [Request(f"caller {number}", b"") for number in range(4000)]
    few, many = ([request.falls_into(share) for request in requests] for share in (0.05, 0.25))
    assert 0.04 < np.mean(few) < 0.06
    assert 0.22 < np.mean(many) < 0.28
    assert not any(at_few and not at_many for at_few, at_many in zip(few, many, strict=True))
    assert not any(request.falls_into(0.0) for request in requests)
    assert all(request.falls_into(1.0) for request in requests)


def test_kill_9_in_the_middle_of_a_request_costs_the_caller_nothing_and_the_next_is_answered(
    trial: Trial, incumbent: Backend, candidate: Backend, questions: list[Request]
) -> None:
    router, died = trial(1.0), candidate.pid
    assert died is not None
    os.kill(died, signal.SIGSTOP)  # so that it has the request and cannot have answered it
    killer = threading.Timer(0.3, os.kill, (died, signal.SIGKILL))
    killer.start()
    started = time.monotonic()
    assert_answered_by_incumbent(router, incumbent, questions[0])
    assert 0.3 < time.monotonic() - started < SECONDS
    candidate.wait_until_ready(30)
    assert candidate.pid != died
    assert router.answer(questions[1]).by == "candidate"
    assert faults_of(router) == ["died", ""]


def test_a_candidate_that_hangs_costs_its_deadline_at_most_and_is_replaced(
    trial: Trial, incumbent: Backend, candidate: Backend, questions: list[Request]
) -> None:
    router, hung = trial(1.0, seconds=0.5), candidate.pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    started = time.monotonic()
    reply = router.answer(questions[0])
    assert 0.5 < time.monotonic() - started < 0.5 + SECONDS
    assert (reply.status, reply.by) == (200, "incumbent")
    candidate.wait_until_ready(30)
    assert not is_alive(hung)
    assert faults_of(router) == ["late"]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def broken(folder: Path, place: Path, change: Callable[[str], str]) -> Path:
    """The model with other code. It is not verified here: what is asked is what happens when it runs."""
    copy = Path(shutil.copytree(folder, place / "broken"))
    code = copy / "serving_model.py"
    code.write_text(change(code.read_text()))
    return copy


RETURN = "return outputs.numpy()"
FAULTS: dict[str, tuple[str, str]] = {
    "nan": (RETURN, "return outputs.numpy() * (np.nan if model_input['numeric'].shape[1] > 17 else 1)"),
    "shape": (RETURN, "return outputs.numpy()[:, :-1]"),
    "refused": (RETURN, "return outputs.numpy() if model_input['numeric'].shape[1] <= 17 else 1 / 0"),
    "died": (RETURN, "import os; os.abort() if model_input['numeric'].shape[1] > 17 else None; " + RETURN),
    "load": ("self.model.eval()", "raise RuntimeError('no such thing')"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_candidate_that_is_broken_costs_the_caller_nothing_and_is_out_after_three_in_a_row(
    fault: str,
    trial: Trial,
    nursery: Nursery,
    incumbent: Backend,
    folders: tuple[Path, Path],
    questions: list[Request],
    tmp_path: Path,
) -> None:
    backend = Backend(nursery, broken(folders[1], tmp_path, lambda code: code.replace(*FAULTS[fault])))
    backend.wait_until_ready = lambda seconds: None  # type: ignore[method-assign]
    router = trial(1.0, backend, seconds=30)
    for number in range(3):
        assert ladder_of(router).share == 1.0
        assert_answered_by_incumbent(router, incumbent, questions[number])
    assert ladder_of(router).share == 0.0  # before the next caller asks
    assert ladder_of(router).is_breached
    assert "3 requests in a row that only the candidate failed" in ladder_of(router).last.reason
    assert_answered_by_incumbent(router, incumbent, questions[3])
    assert faults_of(router) == [fault] * 3  # and it was not asked any more


MALFORMED: dict[str, Any] = {
    "no JSON": b"{",
    "no object": b"[1]",
    "no inputs": b"{}",
    "not UTF-8": b"\xff",
    "a budget beyond 1": {"params": {"budget": 3}},
    "a budget that is none": {"params": {"budget": "much"}},
    "another shape": {"numeric": [[[1.0]]]},
    "a hole": {"numeric": None},
    "an unknown code": {"categorical": 99},
}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_malformed_request_is_refused_in_one_line_and_the_stream_goes_on(
    share: float, trial: Trial, questions: list[Request]
) -> None:
    router = trial(share)
    router.answered = questions[0].body
    for name, malformed in MALFORMED.items():
        reply = router.answer(Request("bad", altered(questions[0], malformed)))
        assert 400 <= reply.status < 500, name
        message = json.loads(reply.body)["message"]
        assert message.strip(), name
        assert "\n" not in message, name
        assert "Traceback" not in message, name
        assert len(message) < 250, (name, message)
    assert router.answer(questions[0]).status == 200
    assert faults_of(router) == [""]  # none of it is held against the candidate
    assert [seen.failed for seen in router.watch._seen] == [False]  # nor against what is live


def altered(question: Request, change: Any) -> bytes:
    if isinstance(change, bytes):
        return change
    content = json.loads(question.body)
    inputs = content["inputs"]
    for name, value in change.items():
        if name == "params":
            content["params"] = value
        elif isinstance(value, list):
            inputs[name] = value
        else:
            inputs[name][0][0][0] = value
    return json.dumps(content).encode()


def test_an_incumbent_that_dies_is_replaced_before_the_caller_notices(
    trial: Trial, incumbent: Backend, questions: list[Request]
) -> None:
    router, died = trial(0.0), incumbent.pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    reply = router.answer(questions[0])
    assert (reply.status, reply.by) == (200, "incumbent")
    assert incumbent.pid != died


def test_a_dense_model_reads_everything_whatever_budget_is_asked_and_a_sparse_one_obeys(
    incumbent: Backend, candidate: Backend, questions: list[Request]
) -> None:
    def ask(backend: Backend, params: dict[str, float] | None) -> np.ndarray:
        content = json.loads(questions[0].body) | ({"params": params} if params else {})
        return predictions(backend.ask(json.dumps(content).encode(), 30).body)

    np.testing.assert_array_equal(ask(incumbent, {"budget": 0.125}), ask(incumbent, None))
    np.testing.assert_array_equal(ask(candidate, {"budget": 0.25}), ask(candidate, None))
    assert np.abs(ask(candidate, {"budget": 0.125}) - ask(candidate, {"budget": 0.5})).max() > 1e-4
    np.testing.assert_allclose(ask(candidate, {"budget": 0.0}), ask(incumbent, None), atol=1e-5)


def test_a_candidate_that_is_fine_climbs_and_the_moves_are_told(
    trial: Trial, questions: list[Request]
) -> None:
    policy = CanaryPolicy(
        shares=(0.0, 0.5, 1.0),
        min_requests=10,
        max_error_rate=0.5,
        max_disagreement=0.9,
        max_latency_ratio=1e6,
    )
    told: list[Move] = []
    router = trial(0.0, policy=policy)
    router.on_move = told.append
    for number in range(120):
        assert router.answer(Request(f"caller-{number}", questions[number % 20].body)).status == 200
        router.settle()
    assert [(move.action, move.share) for move in told] == [("climb", 0.5), ("climb", 1.0), ("complete", 1.0)]
    assert router.answer(questions[0]).by == "candidate"
