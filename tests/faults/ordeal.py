"""One retraining and all that is done to it on its way, and what has to be true at its end."""

import json
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from pipelines.files import exclusive_lock
from pipelines.release_log import ReleaseLog
from pipelines.settings import load_settings
from tests.faults.harm import Harm, Site
from tests.operated import drift_event, until

T = TypeVar("T")
NUM_STEPS, STEPS_PER_EPOCH = 12, 3
"""Of the retraining's training (tests.tiny_rollout): it is hit in its third epoch."""
STEPS = {
    "reading": ("pipelines.retraining:known_data", 1),
    "training": ("pipelines.training:Fit.training_step", 8),
    "registering": ("pipelines.registry:Tracker.register_version", 1),
    "entering": ("pipelines.release:reconcile", 1),
    "judging": ("pipelines.retraining:judge_stage", 1),
    "deciding": ("pipelines.release:apply_verdict", 1),
    "reporting": ("pipelines.retraining:ending", 1),
}
"""The call, and which one of its kind, before which the retraining is hit, in its own order."""
BY_ITSELF, ASKED_AGAIN = "went on by itself", "marked as failed with its reason, went on when asked again"
RETRAIN = "retrain/on-drift"
MEND_S = 400.0


@dataclass
class Ordeal:
    """In a home folder where a model is live."""

    site: Site
    harms: dict[str, Harm]
    """What strikes at which step, in the order of the steps."""
    wrong: list[str] = field(default_factory=list)
    """What is not as it has to be."""
    run: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    num_asked: int = 0

    @property
    def gates(self) -> Path:
        return self.site.folder / "gates"

    def play(self) -> Iterator[dict[str, Any]]:
        """One cell for each step."""
        self._put_up_gates()
        self.site.start()
        self._bring_news()
        self._until_at(next(iter(self.harms)))
        for step, following in zip(self.harms, [*list(self.harms)[1:], ""], strict=True):
            started = time.monotonic()
            with self.harms[step](self.site):
                (self.gates / f"{step}.go").touch()
            outcome, why = self._until_at(following)
            yield {"step": step, "outcome": outcome, "why": why, "seconds": round(time.monotonic() - started)}
        self._look_around()

    def _put_up_gates(self) -> None:
        self.gates.mkdir()
        content = {"folder": str(self.gates), "steps": {step: STEPS[step] for step in self.harms}}
        file = self.site.folder / "gates.json"
        file.write_text(json.dumps(content))
        self.site.environ["DANKAI_TEST_GATES"] = str(file)

    def _bring_news(self) -> None:
        """A drifted batch, of which every Prefect server hears: the same news, so one retraining."""
        event = drift_event(self.site.folder, "pump", "a fault test")
        self.parameters = {name: event["payload"][name] for name in ("dataset", "policy", "reason", "batch")}
        for server in self.site.schedulers:
            server.ask("/events", [drift_event(self.site.folder, "pump", "a fault test")])
        self.run = until(lambda: self.site.servers.runs_of(RETRAIN), 60)[0]["id"]

    def _until_at(self, step: str) -> tuple[str, str]:
        """How the retraining came to the step, or with "" to its end, and what was said on the way."""
        reasons: list[str] = []
        while not self._is_at(step):
            ended = until(lambda: self._is_at(step) or self._over(), MEND_S)
            if isinstance(ended, bool):
                break
            said = ended["state"]["message"] or ""
            if ended["state_type"] == "COMPLETED":
                self._expect(not step, f"it ended before it was {step}: {said}")
                break
            self._expect(bool(said), f"{ended['state_type']} without a reason")
            reasons.append(f"{ended['state_type']}: {said[:300]}")
            assert len(reasons) < 4, f"asked for again and again: {reasons}"
            self._ask_again()
        return (ASKED_AGAIN if reasons else BY_ITSELF), " | ".join(reasons)

    def _is_at(self, step: str) -> bool:
        return bool(step) and (self.gates / f"{step}.reached").exists()

    def _over(self) -> dict[str, Any] | None:
        """The run if it is over, also some seconds later: its worker may let it go on."""
        first = self._if_over()
        if first is None or first["state_type"] == "COMPLETED":
            return first
        time.sleep(4)
        second = self._if_over()
        return second if second and second["state_id"] == first["state_id"] else None

    def _if_over(self) -> dict[str, Any] | None:
        run = answered(lambda: self.site.servers.ask(f"/flow_runs/{self.run}", method="GET"))
        is_over = run and run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return run if is_over else None

    def _ask_again(self) -> None:
        self.run = until(lambda: answered(lambda: self.site.servers.start(RETRAIN, **self.parameters)), 60)
        self.num_asked += 1

    # At the end

    def _look_around(self) -> None:
        """Nothing decided twice or lost, nothing trained twice, no slot or lock taken, no process left."""
        self._expect_one_decision()
        self._expect_one_training()
        self._expect_free()
        family = self.site.family()
        self.site.stop()
        _, left = psutil.wait_procs(family, 10)
        self._expect(not left, f"processes are left: {left}")

    def _expect_one_decision(self) -> None:
        database = self.site.environ.get("DANKAI_DATABASE_URL", "")
        settings = load_settings({"DANKAI_HOME": str(self.site.home), "DANKAI_DATABASE_URL": database})
        actions = [str(entry.decision.action) for entry in ReleaseLog.open(settings).entries()]
        self._expect(actions.count("retrain") == 1, f"challengers entered: {actions}")
        decided = [action for action in actions[actions.index("retrain") :] if action != "retrain"]
        self._expect(len(decided) == 1, f"decisions on it: {decided}")
        for command, holds in (
            (("audit", "verify"), "hold:"),
            (("reconcile",), "agree with the release log"),
        ):
            done = self.site.servers.dankai(*command)
            self._expect(done.code == 0 and holds in done.out, f"{command}: {done.out}{done.err}")

    def _expect_one_training(self) -> None:
        num_runs = len(self.site.servers.runs_of(RETRAIN))
        expected = 1 + self.num_asked
        self._expect(num_runs == expected, f"{num_runs} runs where {expected} were asked for")
        if "training" in self.harms:
            calls = len((self.gates / "training.calls").read_text().splitlines())
            again = calls - NUM_STEPS
            self._expect(0 <= again <= STEPS_PER_EPOCH, f"{again} of {NUM_STEPS} steps were trained again")

    def _expect_free(self) -> None:
        """Slots may be given back a moment after the run ended."""

        def taken() -> int:
            return self.site.servers.deployment(RETRAIN)["global_concurrency_limit"]["active_slots"]

        deadline = time.monotonic() + 10
        while taken() and time.monotonic() < deadline:
            time.sleep(0.5)
        self._expect(taken() == 0, f"slots taken: {taken()}")
        for lock in ("pump.lock", "training.lock"):
            with exclusive_lock(self.site.home / lock, wait=False):
                pass
        planned = self.site.servers.ask("/flow_runs/filter", {"limit": 200})
        times = Counter(
            (run["deployment_id"], run["expected_start_time"]) for run in planned if run["auto_scheduled"]
        )
        twice = [each for each, count in times.items() if count > 1]
        self._expect(not twice, f"planned twice: {twice}")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


def answered(question: Callable[[], T]) -> T | None:
    """The answer, or None while the server is down or is not well."""
    try:
        return question()
    except (OSError, urllib.error.URLError, ValueError):
        return None
