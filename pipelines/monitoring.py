"""Watching what is live: what was measured, window after window, and the way back when a bound is broken.

An observation is a file, named after its window and the weights it is about, so that a window that is
looked at again counts once.
"""

from pathlib import Path

from pipelines.actors import automatic
from pipelines.decisions import rollback
from pipelines.files import replace_file
from pipelines.job import dataset_folder
from pipelines.release_log import ReleaseLog
from pipelines.rollout import RolloutState, current_state
from pipelines.settings import Settings
from validation.errors import InputError
from validation.kpis import Kpi
from validation.policy import Policy
from validation.record import Record
from validation.rollback import breached

MONITOR = "monitor"


class Observation(Record):
    """What was measured of one live model in one window. Windows sort by name: 2013-10, 2013-10-07T14:00."""

    window: str
    checkpoint: str
    kpis: tuple[Kpi, ...]


def observe(settings: Settings, dataset: str, observation: Observation) -> None:
    """Keep an observation; the same window of the same weights again replaces it."""
    name = f"{observation.window}-{observation.checkpoint[:16]}.json"
    replace_file(_folder(settings, dataset) / name, observation.model_dump_json(indent=1).encode() + b"\n")


def observations(settings: Settings, dataset: str) -> list[Observation]:
    """Everything observed, oldest window first. Raises InputError for a damaged file."""
    return [_read(path) for path in sorted(_folder(settings, dataset).glob("*.json"))]


def roll_back_if_breached(
    log: ReleaseLog, settings: Settings, dataset: str, policy: Policy, task_metric: str
) -> RolloutState | None:
    """Take the live model back, as the monitor, when it broke a bound as often as the policy says.

    The state after the rollback; None where nothing was broken. Raises InputError where it was and there is
    no earlier release to go back to: then a person has to decide.
    """
    state = current_state(log, dataset)
    if state.live is None:
        return None
    history = [kpi for each in observations(settings, dataset) for kpi in each.kpis]
    # A stage's name is the same word in the policy and in the log.
    rules = policy.rollback(state.stage.value)  # type: ignore[arg-type]
    breach = breached(history, rules, checkpoint=state.live.checkpoint, task_metric=task_metric)
    if breach is None:
        return None
    return rollback(log, state, automatic(MONITOR), breach.reason)


def _folder(settings: Settings, dataset: str) -> Path:
    return dataset_folder(settings, dataset) / "observations"


def _read(path: Path) -> Observation:
    try:
        return Observation.model_validate_json(path.read_bytes())
    except ValueError:
        raise InputError(
            f"{path}: not a whole observation; remove it and measure that window again"
        ) from None
