"""A running service does what the release log says, and tells the monitor what callers got."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.job import Job
from pipelines.registry import ModelVersion
from pipelines.release_log import Action, Decision, Stage, head
from pipelines.rollout import current_state
from pipelines.servable import verify_model
from pipelines.serving.backend import Backend, Nursery, Unanswered
from pipelines.serving.follower import Follower, open_follower
from pipelines.serving.front_door import _answer
from pipelines.serving.requests import Request
from pipelines.serving.service import Trial
from pipelines.serving.watch import Seen, Watch, Window, observation_of
from pipelines.signing import trusted_keys
from validation.gates import Outcome

if TYPE_CHECKING:
    from pipelines.checkpoint import Checkpoint

NAME = "followed"
WINDOW = 20


@pytest.fixture
def followed(
    job: Job,
    trained: "dict[str, Checkpoint]",
    register: Callable[..., ModelVersion],
    decide: Callable[..., None],
) -> tuple[Job, list[ModelVersion]]:
    """A dataset of its own: version 1 is live, version 2 held by the gate."""
    own = replace(job, spec=job.spec.model_copy(update={"name": NAME}))
    versions = [register(own, trained["dense"], 0.0), register(own, trained["selector"], 0.25)]
    decide(own, versions[0], Action.BOOTSTRAP, Stage.NONE, Stage.PILOT)
    decide(own, versions[1], Action.HOLD, Stage.PILOT, Stage.PILOT, Outcome.HOLD)
    return own, versions


@pytest.fixture
def decide(decision: Callable[..., Decision]) -> Callable[..., None]:
    """Append a decision to a job's log."""

    def append(job: Job, *about: Any) -> None:
        job.log.append(decision(*about), head(job.log.entries(), NAME))

    return append


def test_a_running_service_follows_promotion_and_rollback_and_the_monitor_takes_a_broken_model_back(
    followed: tuple[Job, list[ModelVersion]],
    decide: Callable[..., None],
    questions: list[Request],
    tmp_path: Path,
) -> None:
    job, (_, selector) = followed
    told: list[str] = []
    with open_follower(job, Trial(deadline_s=30), lambda move: None, told.append) as follower:

        def asked(number: int = 0) -> tuple[int, str]:
            status, _, by = _answer(lambda: follower.service, f"caller-{number}", questions[0].body)
            return status, by

        assert asked() == (200, "incumbent, version 1")
        assert follower.service.candidate is not None
        decide(job, selector, Action.PROMOTE, Stage.PILOT, Stage.TRAINING, Outcome.PASS)
        wait_until(lambda: follower.service.incumbent.version == 2)
        assert asked() == (200, "incumbent, version 2")
        assert follower.service.candidate is None
        break_incumbent(follower, tmp_path)
        for number in range(3 * WINDOW):
            assert asked(number)[0] in (200, 400)
        wait_until(lambda: follower.service.incumbent.version == 1)
        assert asked() == (200, "incumbent, version 1")
    last = job.log.entries()[-1].decision
    assert (last.action, last.actor, last.automatic, last.version) == ("rollback", "monitor", True, 1)
    assert (
        "error_rate broke its bound in 3 windows, with none between that kept it: 1 [0.832, 1]" in last.reason
    )
    assert current_state(job.log, NAME).champion == 1
    assert any("the monitor took version 2 back" in each for each in told)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def break_incumbent(follower: Follower, place: Path) -> None:
    """The live model, with code that refuses everything: what a bad library can make of a good one.

    To a caller it looks like a fault of his own: status 400.
    """
    import shutil

    router = follower.service.router
    copy = Path(shutil.copytree(router.incumbent._folder, place / "broken"))
    code = copy / "serving_model.py"
    whole = code.read_text()
    shorter = "model_input['numeric'].shape[1] <= 17"  # as the example that is asked when it is loaded
    code.write_text(
        whole.replace("return outputs.numpy()", f"return outputs.numpy() if {shorter} else 1 / 0")
    )
    assert code.read_text() != whole
    router.incumbent = Backend(follower._nursery, copy)
    router.watch = Watch(WINDOW)


def test_files_that_were_altered_meanwhile_are_not_loaded_again(
    nursery: Nursery, job: Job, folders: tuple[Path, Path], questions: list[Request], tmp_path: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(folders[0], tmp_path / "model", ignore=shutil.ignore_patterns("__pycache__")))
    live = current_state(job.log, "canary").live
    assert live is not None
    trusted = trusted_keys(job.settings.keys)
    backend = Backend(nursery, copy, lambda: verify_model(copy, trusted, live.checkpoint))
    assert backend.ask(questions[0].body, 60).status == 200
    assert not list(copy.rglob("__pycache__"))  # loading it leaves it as it was signed
    worker = backend._worker
    assert worker is not None
    config = copy / "artifacts" / "config.json"
    config.write_text(config.read_text() + " ")
    nursery.kill(worker)
    with pytest.raises(Unanswered, match="died"):
        backend.ask(questions[0].body, 60)
    with pytest.raises(Unanswered, match="its files are not as signed"):
        backend.ask(questions[0].body, 60)


def test_a_window_tells_error_rate_and_latency_of_what_answered() -> None:
    live = ModelVersion(name="m", version=1, checkpoint="c", snapshot="s")
    watch = Watch(size=400)
    for number in range(799):
        watch.add(Seen(failed=number % 100 == 0, seconds=None if number % 100 == 0 else 0.001 * number))
    [window] = watch.closed
    assert isinstance(window, Window)
    found = {kpi.name: kpi for kpi in observation_of(window, live, 0.95).kpis}
    assert found["error_rate"].value == pytest.approx(0.01)
    assert found["error_rate"].n == 400
    assert 394 <= found["latency_p99_ms"].value <= 396
    assert found["latency_p99_ms"].n == 396
    dead = observation_of(Window("w", (Seen(True, None),) * 400), live, 0.95)
    assert [kpi.name for kpi in dead.kpis] == ["error_rate"]
