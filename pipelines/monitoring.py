"""Watching what is live: what was measured, window after window, and the way back when a bound is broken.

An observation is a file, named after its window and the weights it is about, so that a window that is
looked at again counts once. It is signed: what takes models back is not for everybody to write. What was
observed before the model went live, or before it was let in again after a rollback, was decided upon then and
counts no more.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipelines.actors import automatic
from pipelines.decisions import rollback
from pipelines.files import replace_file
from pipelines.job import dataset_folder
from pipelines.release_log import ReleaseEntry, ReleaseLog
from pipelines.rollout import RolloutState, advance, replay, rest_on
from pipelines.settings import Settings
from pipelines.signing import is_signed, load_key, sign, trusted_keys
from validation.errors import InputError
from validation.kpis import Kpi
from validation.policy import Policy
from validation.record import Record
from validation.rollback import breached

MONITOR, PURPOSE = "monitor", "observation"
logger = logging.getLogger(__name__)
_KEPT = 1000
"""Windows of requests of one model that stay, far more than any rule looks at; there are hundreds a day."""


class Observation(Record):
    """What was measured of one live model in one window. Windows sort by name: 2013-10, 2013-10-07T14:00."""

    window: str
    checkpoint: str
    kpis: tuple[Kpi, ...]
    time: str = ""
    """ISO time at which this window was first observed; `observe` writes it."""


class SignedObservation(Record):
    """An observation as it lies on disk. The signature is over dataset and digest."""

    observation: Observation
    signature: str


class Alert(Record):
    """A bound was broken and there is no earlier release to go back to: a person has to decide."""

    dataset: str
    version: int
    checkpoint: str
    reason: str
    time: str

    def sentence(self) -> str:
        """What happened and what is left to do."""
        return (
            f"of {self.time}: version {self.version}: {self.reason}; "
            "there is no earlier release to go back to: a person has to decide"
        )


def observe(settings: Settings, dataset: str, observation: Observation) -> None:
    """Keep an observation; the same window of the same weights again replaces it, and keeps its time."""
    key, trusted = load_key(settings.keys), trusted_keys(settings.keys)
    path = _folder(settings, dataset) / f"{observation.window}-{observation.checkpoint[:16]}.json"
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    dated = observation.model_copy(
        update={"time": _read(path, dataset, trusted).time if path.exists() else now}
    )
    signed = SignedObservation(observation=dated, signature=sign(key, PURPOSE, _message(dataset, dated)))
    replace_file(path, signed.model_dump_json(indent=1).encode() + b"\n")
    of_requests = [each for each in _files(settings, dataset, observation.checkpoint) if "T" in each.stem]
    for old in of_requests[:-_KEPT]:  # named by the time of day; those of a month stay
        old.unlink(missing_ok=True)


def observations(settings: Settings, dataset: str, checkpoint: str = "") -> list[Observation]:
    """Everything observed, or what is about `checkpoint`, oldest window first.

    Raises InputError where a file is damaged or was not signed by a key of this installation.
    """
    trusted = trusted_keys(settings.keys)
    return [_read(path, dataset, trusted) for path in _files(settings, dataset, checkpoint)]


def alert_file(settings: Settings, dataset: str) -> Path:
    """The last alert, where there was one."""
    return dataset_folder(settings, dataset) / "alert.json"


def open_alert(settings: Settings, entries: Sequence[ReleaseEntry], dataset: str) -> Alert | None:
    """What a person has to decide about now: the last alert, while the weights it is about are live."""
    path, live = alert_file(settings, dataset), replay(entries, dataset).live
    if live is None or not path.exists():
        return None
    try:
        alert = Alert.model_validate_json(path.read_bytes())
    except ValueError:
        raise InputError(f"{path}: not a whole alert; remove it: the monitor writes it anew") from None
    is_open = alert.checkpoint == live.checkpoint and alert.time >= live_since(entries, dataset)
    return alert if is_open else None


def roll_back_if_breached(
    log: ReleaseLog, settings: Settings, dataset: str, policy: Policy, task_metric: str
) -> RolloutState | None:
    """Take the live model back, as the monitor, when it broke a bound as often as the policy says.

    The state after the rollback; None where nothing was broken. Where it was and there is no earlier release
    to go back to, that is logged as an error and kept as an alert, and None: then a person has to decide.
    """
    entries = log.entries()
    state = replay(entries, dataset)
    if state.live is None:
        return None
    since = live_since(entries, dataset)
    seen = [each for each in observations(settings, dataset, state.live.checkpoint) if each.time >= since]
    history = [kpi for each in seen for kpi in each.kpis]
    # A stage's name is the same word in the policy and in the log.
    rules = policy.rollback(state.stage.value)  # type: ignore[arg-type]
    breach = breached(history, rules, checkpoint=state.live.checkpoint, task_metric=task_metric)
    if breach is None:
        return None
    if state.last_green is None:
        _alert(settings, state, breach.reason)
        return None
    return rollback(log, state, automatic(MONITOR), breach.reason)


def live_since(entries: Iterable[ReleaseEntry], dataset: str) -> str:
    """ISO time of the entry since which the live weights have been live without a break; "" for none."""
    state, since = RolloutState(dataset=dataset), ""
    for entry in (entry for entry in entries if entry.decision.dataset == dataset):
        before, state = state.live, rest_on(advance(state, entry.decision), entry)
        if state.live and (before is None or before.checkpoint != state.live.checkpoint):
            since = entry.time
    return since


def _alert(settings: Settings, state: RolloutState, reason: str) -> None:
    assert state.live is not None
    alert = Alert(
        dataset=state.dataset,
        version=state.live.champion,
        checkpoint=state.live.checkpoint,
        reason=reason,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    replace_file(alert_file(settings, state.dataset), alert.model_dump_json(indent=1).encode() + b"\n")
    logger.error("%s: alert %s", alert.dataset, alert.sentence())


def _files(settings: Settings, dataset: str, checkpoint: str) -> list[Path]:
    return sorted(_folder(settings, dataset).glob(f"*-{checkpoint[:16]}.json" if checkpoint else "*.json"))


def _folder(settings: Settings, dataset: str) -> Path:
    return dataset_folder(settings, dataset) / "observations"


def _read(path: Path, dataset: str, trusted: Mapping[str, Ed25519PublicKey]) -> Observation:
    try:
        signed = SignedObservation.model_validate_json(path.read_bytes())
    except ValueError:
        raise InputError(
            f"{path}: not a whole observation; remove it and measure that window again"
        ) from None
    if not is_signed(trusted, PURPOSE, _message(dataset, signed.observation), signed.signature):
        raise InputError(f"{path}: its signature does not hold; remove it and measure that window again")
    return signed.observation


def _message(dataset: str, observation: Observation) -> bytes:
    return f"{dataset} {observation.digest()}".encode()
