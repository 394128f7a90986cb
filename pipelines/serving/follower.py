"""A service that stays in step with the release log: it feeds the monitor, and serves what is live.

One thread does both, in this order: windows of requests that are full become observations; the monitor takes
a model back that broke a bound; and whoever moved what is live or on trial, the backends follow within a
second or so. Callers are answered by the models before until those after are loaded.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipelines.job import Job
from pipelines.monitoring import observe, roll_back_if_breached
from pipelines.reconciliation import reconcile
from pipelines.registry import ModelVersion
from pipelines.release_log import ReleaseLog
from pipelines.release_store import FileStore
from pipelines.serving.backend import Nursery
from pipelines.serving.ladder import Move
from pipelines.serving.router import Router
from pipelines.serving.service import Service, Trial, chosen_versions, open_nursery, start_service
from pipelines.serving.watch import Window, observation_of
from validation.errors import InputError

LOOK_SECONDS = 0.5
"""Between two looks at the release log."""
_PAUSE_SECONDS = 5.0
"""After a look that came to nothing: a registry that does not answer, a model that does not load."""

Say = Callable[[str], None]


class Follower:
    """Holds the service of the moment in `service`."""

    def __init__(
        self, job: Job, nursery: Nursery, trial: Trial, on_move: Callable[[Move], None], say: Say
    ) -> None:
        """Raises InputError where nothing can be served."""
        self._job, self._nursery, self._on_move, self._say = job, nursery, on_move, say
        self.service = start_service(job, nursery, chosen_versions(job, trial), trial, on_move)
        self._trial = replace(trial, again=None)
        self._log_seen: object = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_forever, daemon=True)

    def start(self) -> None:
        """Look at the log from now on, until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(_PAUSE_SECONDS)

    def look(self) -> None:
        """Tell the monitor what was seen, and serve what is live. Raises InputError where that fails."""
        was_taken_back = False
        try:
            was_taken_back = self._tell_monitor()
        finally:
            self._follow()
        if was_taken_back:  # last: the registry's aliases are a view, and may be slow to reach
            reconcile(self._job.log, self._job.tracker)

    def _look_forever(self) -> None:
        said = ""
        while not self._stopped.wait(_PAUSE_SECONDS if said else LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # whatever it is: without this thread nothing is ever taken back
                if str(error) != said:
                    self._say(str(error) or type(error).__name__)
                said = str(error) or type(error).__name__
            else:
                said = ""

    def _tell_monitor(self) -> bool:
        """Whether the monitor took the live model back."""
        closed, taken_back = self.service.router.watch.closed, False
        while closed:
            taken_back |= self._judge(closed[0])
            closed.popleft()
        return taken_back

    def _judge(self, window: Window) -> bool:
        from pipelines.evaluation import TASK_METRICS

        job, name = self._job, self._job.spec.name
        observe(job.settings, name, observation_of(window, self.service.incumbent, job.policy.confidence))
        metric = TASK_METRICS[job.spec.task][0]
        after = roll_back_if_breached(job.log, job.settings, name, job.policy, metric)
        if after is not None:
            self._say(f"the monitor took version {self.service.incumbent.version} back")
        return after is not None

    def _follow(self) -> None:
        stamp = _stamp(self._job.log)
        if stamp == self._log_seen:
            return
        wanted, before = self._wanted(), self.service
        if _numbers(*wanted) != _numbers(before.incumbent, before.candidate):
            self.service = self._replaced(wanted)
            self._say(f"as the release log says: {_names(self.service)}")
            threading.Thread(
                target=_retire, args=(before.router, self.service.router), daemon=True
            ).start()  # it may be hanging, and nobody waits for it
        self._log_seen = stamp

    def _wanted(self) -> tuple[ModelVersion, ModelVersion | None]:
        """What a person named as the candidate is on trial only against what was live then."""
        live, _ = chosen_versions(self._job, Trial())
        if live.checkpoint != self.service.incumbent.checkpoint:
            self._trial = replace(self._trial, candidate=None)
        return chosen_versions(self._job, self._trial)

    def _replaced(self, wanted: tuple[ModelVersion, ModelVersion | None]) -> Service:
        """The service after; what is live is served even where its candidate cannot be tried."""
        parts = (self._job, self._nursery)
        try:
            return start_service(*parts, wanted, self._trial, self._on_move, self.service)
        except InputError as error:
            if wanted[1] is None:
                raise
            self._say(str(error))
            return start_service(*parts, (wanted[0], None), self._trial, self._on_move, self.service)


@contextmanager
def open_follower(job: Job, trial: Trial, on_move: Callable[[Move], None], say: Say) -> Iterator[Follower]:
    """A service that follows the release log; its processes end with the block, however it ends.

    Raises InputError where nothing is live, files are not as signed, or the incumbent does not load.
    """
    chosen_versions(job, trial)  # what cannot be served is said before anything is started
    with open_nursery(job) as nursery:
        follower = Follower(job, nursery, trial, on_move, say)
        follower.start()
        try:
            yield follower
        finally:
            follower.stop()


def _stamp(log: ReleaseLog) -> object:
    """Something that changes whenever the log does, and costs little to look at."""
    if isinstance(log.store, FileStore):
        state = log.store.path.stat()
        return state.st_mtime_ns, state.st_size, state.st_ino
    lines = log.store.read()
    return len(lines), lines[-1:]


def _numbers(live: ModelVersion, candidate: ModelVersion | None) -> tuple[object, ...]:
    return live.version, live.checkpoint, candidate and (candidate.version, candidate.checkpoint)


def _names(service: Service) -> str:
    tried = f"version {service.candidate.version}" if service.candidate else "nothing"
    return f"version {service.incumbent.version} answers, {tried} is on trial"


def _retire(before: Router, after: Router) -> None:
    """Finish what is to be compared, and end the processes that are asked no more."""
    before.stop()
    if before.incumbent is not after.incumbent:
        before.incumbent.close()
    if before.candidate is not None:
        before.candidate.backend.close()
        before.candidate.exchanges.close()
