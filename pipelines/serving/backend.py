"""A served model as the router sees it: asked with a deadline, replaced when it dies or hangs."""

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.fingerprint import ROOT
from pipelines.serving.frames import receive_frame, send_frame
from pipelines.signing import without_secrets
from validation.errors import InputError

LOAD_SECONDS = 60.0
"""After this a model that is still loading counts as hung."""
STILL_LOADING = "load: it is still loading"
_LONGEST_PAUSE = 60.0
"""Between two attempts at a model that does not load."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one request, as MLflow's scoring server says it."""

    status: int
    body: bytes
    seconds: float
    """From handing the request to the model's process to having its answer."""
    fault: str = ""
    """What makes a 200 unusable: NaN or a wrong shape."""


class Unanswered(Exception):
    """The model gave no answer: "late: ...", "died: ..." or "load: ..."."""


class Nursery:
    """The process that starts models' processes (pipelines.serving.worker), started again should it die."""

    def __init__(self, log: Path, threads: int) -> None:
        self._log, self._threads = log, threads
        self._turn = threading.Lock()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def start(self, folder: Path) -> "Worker":
        """A process that is loading the model in `folder`. Raises OSError where none can be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = self._start(folder, theirs)
            except OSError:
                self._reopen()
                pid = self._start(folder, theirs)
        return Worker(pid, ours)

    def kill(self, worker: "Worker") -> None:
        worker.connection.close()
        with self._turn, suppress(OSError):  # it may have died, and with it all it started
            self._command({"kill": worker.pid})

    def close(self) -> None:
        """End every process that was started here."""
        self._commands.close()
        self._process.wait()

    def _start(self, folder: Path, theirs: socket.socket) -> int:
        with self._turn:
            self._command({"start": str(folder), "threads": self._threads}, theirs)
            return receive_frame(self._commands, time.monotonic() + LOAD_SECONDS)[0]["pid"]

    def _command(self, command: dict[str, Any], *passed: socket.socket) -> None:
        self._commands.settimeout(LOAD_SECONDS)
        if passed:
            socket.send_fds(self._commands, [b"!"], [each.fileno() for each in passed])
        else:
            self._commands.sendall(b"!")
        send_frame(self._commands, command, b"", time.monotonic() + LOAD_SECONDS)

    def _open(self) -> None:
        self._commands, theirs = socket.socketpair()
        # No bytecode beside a model's code, where it would be a file that nobody signed; and a session of its
        # own, as Ctrl-C is for the process that decides what to end when.
        environ = {**without_secrets(os.environ), "PYTHONDONTWRITEBYTECODE": "1"}
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.serving.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environ,
                start_new_session=True,
            )

    def _reopen(self) -> None:
        with self._turn:
            if self._process.poll() is None:
                self._process.kill()
            self.close()
            self._open()


@dataclass
class Worker:
    """One process with one model."""

    pid: int
    connection: socket.socket
    is_ready: bool = False

    def wait_until_ready(self, deadline: float) -> None:
        """Raises TimeoutError while it loads, Unanswered when it cannot, OSError when it died."""
        if not self.is_ready:
            header, _ = receive_frame(self.connection, deadline)
            if "failed" in header:
                raise Unanswered(f"load: it does not load ({header['failed']})")
            self.is_ready = True

    def answer(self, request: bytes, deadline: float) -> Answer:
        started = time.perf_counter()
        send_frame(self.connection, {}, request, deadline)
        header, body = receive_frame(self.connection, deadline)
        return Answer(header["status"], body, time.perf_counter() - started, header["fault"])


class Backend:
    """One model, one request at a time. A process that dies or is late is killed and replaced at once."""

    def __init__(self, nursery: Nursery, folder: Path, verify: Callable[[], None] = lambda: None) -> None:
        """`verify` is called before each process that loads `folder`: InputError where it must not."""
        self._nursery, self._folder, self._verify = nursery, folder, verify
        self._turn = threading.Lock()
        self._worker: Worker | None = None
        self._pause, self._not_before, self._failure = 0.0, 0.0, ""
        self._begin()

    def ask(self, request: bytes, seconds: float) -> Answer:
        """The model's answer. Raises Unanswered after `seconds` at the latest, its turn included."""
        deadline = time.monotonic() + seconds
        if not self._turn.acquire(timeout=seconds):
            raise Unanswered(f"late: it was busy for {seconds:g} s")
        try:
            return self._ask(request, deadline, seconds)
        finally:
            self._turn.release()

    def wait_until_ready(self, seconds: float) -> None:
        """Raises Unanswered where the model does not load in time."""
        deadline = time.monotonic() + seconds
        with self._turn:
            worker = self._running()
            try:
                worker.wait_until_ready(deadline)
            except (TimeoutError, OSError) as error:
                raise Unanswered(f"load: {type(error).__name__} after {seconds:g} s") from error

    def close(self) -> None:
        """End its process once it has answered what it is at; who asks later gets no answer."""
        with self._turn:
            if self._worker is not None:
                self._nursery.kill(self._worker)
            self._worker, self._not_before = None, math.inf
            self._failure = "load: it was taken out of service"

    @property
    def pid(self) -> int | None:
        """Of the process that holds the model at present."""
        return self._worker.pid if self._worker else None

    def _ask(self, request: bytes, deadline: float, seconds: float) -> Answer:
        worker = self._running()
        try:
            worker.wait_until_ready(deadline)
            answer = worker.answer(request, deadline)
        except TimeoutError:
            if not worker.is_ready and time.monotonic() < self._began + LOAD_SECONDS:
                raise Unanswered(STILL_LOADING) from None
            self._replace(worker)
            raise Unanswered(f"late: no answer within {seconds:g} s") from None
        except OSError:
            self._replace(worker)
            raise Unanswered("died: its process ended") from None
        except Unanswered as error:
            self._give_up(worker, str(error))
            raise
        self._pause = 0.0
        return answer

    def _running(self) -> Worker:
        if self._worker is None:
            if time.monotonic() < self._not_before:
                raise Unanswered(self._failure)
            self._begin()
        if self._worker is None:
            raise Unanswered(self._failure)
        return self._worker

    def _begin(self) -> None:
        self._began = time.monotonic()
        try:
            self._verify()
            self._worker = self._nursery.start(self._folder)
        except InputError:  # whose text names a place on this machine: no caller's business
            self._rest("load: its files are not as signed")
        except OSError as error:
            self._worker, self._failure = None, f"load: no process could be started ({error})"

    def _replace(self, worker: Worker) -> None:
        self._nursery.kill(worker)
        self._begin()

    def _give_up(self, worker: Worker, failure: str) -> None:
        self._nursery.kill(worker)
        self._rest(failure)

    def _rest(self, failure: str) -> None:
        """Not again at once: what does not load now hardly loads a moment later."""
        self._pause = min(_LONGEST_PAUSE, max(1.0, 2 * self._pause))
        self._worker, self._not_before = None, time.monotonic() + self._pause
        self._failure = failure
