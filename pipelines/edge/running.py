"""The agent at work: the bundle that is installed or named, changed when another is installed, taken back
when it breaks its bounds."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from pipelines.edge.agent import Agent, Counts, Loaded, Options
from pipelines.edge.intake import STDIN, read_lines
from pipelines.edge.metrics import Record
from pipelines.edge.rows import Inputs
from pipelines.edge.runtime import EdgeModel
from pipelines.edge.updates import bundle_folder, go_back, installed
from pipelines.edge.verification import BundleError
from pipelines.files import exclusive_lock, replace_file
from validation.errors import InputError

logger = logging.getLogger(__name__)
MAX_ENDS = 3
"""Times that a process ended loading a bundle, or at its first window; then the one before comes back."""


class Source(NamedTuple):
    """Whose bundle answers what."""

    input: str
    """A file, a folder, or `-` for standard input."""
    bundle: Path | None
    """None: the one that is installed."""
    key: Ed25519PublicKey
    threads: int = 1
    follow: bool = False


def run(
    device: Path, source: Source, options: Options, emit: Callable[[list[Record]], None]
) -> tuple[Counts, str]:
    """Answer until the input ends or SIGTERM comes; where all its lines ever went, and a note for people.

    `emit` gets answers after they are on the disk. Raises InputError where another agent is at work on this
    device, where no bundle is there, or where the input is not what was read before.
    """
    with exclusive_lock(device / "agent.lock", wait=False), _until_told() as is_told:
        keeper = Keeper(device, source)
        place = None if source.input == STDIN else Path(source.input)
        agent = Agent(device, keeper.load(), place, _as_installed(device, source, options), keeper.score)
        for answers in agent.take(read_lines(source.input, agent.positions, source.follow)):
            emit(answers)
            keeper.look(agent)
            if is_told():
                break
        agent.close()
        return agent.counts, agent.note


def _as_installed(device: Path, source: Source, options: Options) -> Options:
    """The limits that came with the installed bundle."""
    return options if source.bundle else options._replace(limits=installed(device).bounds())


class Keeper:
    """Sees to it that what should answer does."""

    def __init__(self, device: Path, source: Source) -> None:
        self._device, self._source = device, source
        self._attempts = device / "attempts.json"
        self._is_told = self._is_tried = False

    def load(self) -> Loaded:
        """The bundle that should answer now; an installed one that does not load is taken back."""
        if self._source.bundle is not None:
            return self._loaded(self._source.bundle.resolve().name, self._source.bundle)
        name = installed(self._device).current
        if not name:
            raise InputError(f"{self._device}: no bundle is installed; name one, or run dankai edge update")
        if max(self._tries(name).values(), default=0) >= MAX_ENDS:
            return self._back(f"ended the process {MAX_ENDS} times")
        try:
            with self._tried(name, "load"):
                loaded = self._loaded(name, bundle_folder(self._device, name))
        except BundleError as error:
            return self._back(str(error))
        self._is_tried = False
        return loaded

    def score(self, model: EdgeModel, inputs: Inputs, density: float) -> NDArray[np.float32]:
        """A window's scores; the first one of a bundle may end the process, and the next start knows."""
        if self._is_tried or self._source.bundle is not None:
            return model.score(inputs, density)
        with self._tried(installed(self._device).current, "score"):
            scores = model.score(inputs, density)
        self._is_tried = True
        return scores

    def look(self, agent: Agent) -> None:
        """After answers: another bundle may have been installed, or this one has to go."""
        if agent.is_to_reload:
            agent.reload(self.load().model)
        state = installed(self._device)
        if self._source.bundle is None and state.current != agent.bundle:
            agent.change(self.load())
        elif self._source.bundle is None and agent.breach and state.previous:
            agent.change(self._back(agent.breach))
        elif agent.breach and not self._is_told:
            logger.error("%s: %s; there is no bundle to go back to", agent.bundle, agent.breach)
            self._is_told = True

    def _back(self, reason: str) -> Loaded:
        bad = installed(self._device).current
        state = go_back(self._device, reason)
        logger.error("%s: %s; went back to %s", bad, reason, state.current)
        return self.load()

    def _tries(self, name: str) -> dict[str, int]:
        """How often each step of this bundle was begun and never ended."""
        before = json.loads(self._attempts.read_bytes()) if self._attempts.exists() else {}
        return before.get(name, {})

    @contextmanager
    def _tried(self, name: str, step: str) -> Iterator[None]:
        """Noted as begun until it has ended, well or with an error that can be told."""
        tries = self._tries(name)
        self._note_tries({name: tries | {step: tries.get(step, 0) + 1}})
        try:
            yield
        finally:
            self._note_tries({name: tries | {step: 0}})

    def _note_tries(self, tries: dict[str, dict[str, int]]) -> None:
        replace_file(self._attempts, json.dumps(tries).encode())

    def _loaded(self, name: str, folder: Path) -> Loaded:
        return Loaded(name, EdgeModel.load(folder, self._source.key, self._source.threads))


@contextmanager
def _until_told() -> Iterator[Callable[[], bool]]:
    """SIGTERM and Ctrl-C end the work after the answers at hand."""
    told = False

    def note(*_: object) -> None:
        nonlocal told
        told = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
