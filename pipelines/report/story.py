"""What a page tells: the records of one run, side by side, and nothing that was not measured.

It is kept as report.json beside the page, so that the page can be made again in another language.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipelines.budgets import Calibration
from pipelines.cost import CostComparison
from pipelines.data.spec import Task
from pipelines.edge.bundle import Bundle
from pipelines.evaluation import Evaluation
from pipelines.explaining import Explanation
from pipelines.fingerprint import Environment
from pipelines.payback import Payback
from pipelines.rollout import RolloutState
from pipelines.values import Values
from validation.data import DataReport
from validation.drift import DriftReport
from validation.errors import InputError
from validation.kpis import Kpi
from validation.policy import CostPolicy
from validation.record import Record
from validation.statistics import Interval

FILE, PAGE = "report.json", "report.html"
Kind = Literal["rollout", "retraining", "monitor"]
Which = Literal["best", "typical", "worst"]
Event = Literal["", "trained", "promoted", "held", "dropped", "refused", "unfinished", "rolled_back"]
Measure = Literal["log_loss", "mse", "rank_error"]


class Trace(Record):
    """One column over the steps of a window, in the table's own units; None where the model knew nothing."""

    name: str
    values: tuple[float | None, ...]


class Answer(Record):
    """What was said of one step, and what came true (None: not known)."""

    time: str
    score: float
    truth: float | None


class WindowRead(Record):
    """A window, what was read of it, what was said and what came true."""

    which: Which = "typical"
    loss: float = 0.0
    """Of this window alone, by which it was chosen."""
    measure: Measure
    num_windows: int = 1
    """It was chosen from."""
    explanation: Explanation
    times: tuple[str, ...]
    """Of the steps that the model may have read, oldest first."""
    traces: tuple[Trace, ...]
    answers: tuple[Answer, ...]
    """Of the first output."""
    output: str


class Period(Record):
    """One month, batch or training in the life of the model, in order of time."""

    label: str
    time: str
    """When it began, ISO 8601."""
    decision: str = ""
    """Of the drift check: none, watch, retrain or fault; "" where it was not made."""
    metric: str = ""
    value: Interval | None = None
    drift: DriftReport | None = None
    reasons: tuple[str, ...] = ()
    event: Event = ""
    """What followed."""
    is_this: bool = False
    """The run that the page is about."""


class Lineage(Record):
    """From the data to what runs: hashes, and where each thing lies, relative to the page's folder."""

    snapshot: str = ""
    rows: int = 0
    start: str = ""
    end: str = ""
    docs: str = ""
    run_id: str = ""
    run_url: str = ""
    """Of the run in MLflow's pages; "" where no server was named."""
    training_run: str = ""
    training_url: str = ""
    checkpoint: str = ""
    checkpoint_place: str = ""
    verdict: str = ""
    policy: str = ""
    bundle: str = ""
    bundle_place: str = ""


class Story(Record):
    """Everything that one page shows. None or empty: it was not measured, and the page says so."""

    kind: Kind
    dataset: str
    description: str
    task: Task
    finished_at: str
    seconds: float | None = None
    reason: str = ""
    """Why it was done, in the words of who asked (retraining)."""
    outcome: str
    """rollout: the last gate's PASS, HOLD or FAIL; retraining: how it ended; monitor: what was decided."""
    why: tuple[str, ...] = ()
    """In the words of the record."""
    state: RolloutState
    environment: Environment | None = None
    policy: str = ""
    min_timings: int = 1
    density: float | None = None
    """Share of the blocks that the judged model reads."""
    evaluations: tuple[Evaluation, ...] = ()
    how_good: tuple[Values, ...] = ()
    calibration: Calibration | None = None
    costs: tuple[CostComparison, ...] = ()
    windows: tuple[WindowRead, ...] = ()
    groups: tuple[Kpi, ...] = ()
    """Of a monitored batch: the metric itself, and what was missed, by group."""
    periods: tuple[Period, ...] = ()
    data: DataReport | None = None
    payback: Payback | None = None
    prices: CostPolicy | None = None
    bundle: Bundle | None = None
    lineage: Lineage = Lineage()

    @property
    def is_dense(self) -> bool:
        """Whether the judged model reads everything: it has no budget, and saves nothing."""
        return self.density == 1.0


def read_story(place: Path) -> Story:
    """The story kept in a run's folder, or in the file itself. Raises InputError where there is none."""
    path = place / FILE if place.is_dir() else place
    try:
        return Story.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        fix = f"name a folder that holds {FILE}: DANKAI_HOME after a rollout, or a retraining's or a batch's"
        raise InputError(f"{path}: there is no such file; {fix}") from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(f"{path}: not a report of this version of dankai ({reason})") from None
