"""One dataset's rollout on this installation: what every step of it needs at hand."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.actors import Actor, person
from pipelines.clock import now
from pipelines.data.preprocessing import Preprocessing
from pipelines.data.snapshot import Snapshot
from pipelines.data.spec import DatasetSpec, load_spec
from pipelines.data.windows import Windows
from pipelines.files import exclusive_lock
from pipelines.journal import Journal
from pipelines.reconciliation import AliasChange, reconcile, warn_of
from pipelines.registry import Tracker
from pipelines.release_log import ReleaseLog
from pipelines.settings import Settings
from pipelines.steps import once
from pipelines.training_plan import TrainingPlan
from validation.data import DataReport
from validation.evidence import too_old
from validation.policy import Policy, load_policy
from validation.record import Record

if TYPE_CHECKING:
    from pipelines.fan_out import Spread

T = TypeVar("T")
Report = Callable[[str, int, int], None]


class Prepared(Record):
    """Data that passed validation, and the statistics fitted on its training part."""

    snapshot: Snapshot
    report: DataReport
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Job:
    """Settings, dataset and policy of a rollout, and the doors to its stores."""

    settings: Settings
    spec: DatasetSpec
    policy: Policy
    tracker: Tracker
    log: ReleaseLog
    report: Report
    parent_run: str | None = None
    actor: Actor = field(default_factory=person)
    """Who the decisions of this run are recorded under."""
    alias_changes: tuple[AliasChange, ...] = ()
    """What was put right in the registry at the start."""
    spread: "Spread | None" = None
    """Runs pieces of scoring and validation on several machines; None does all of it here."""
    note: Callable[..., None] = lambda **_: None
    """Writes facts into the run's journal (pipelines.journal)."""
    _windows: dict[str, Windows] = field(default_factory=dict, repr=False)

    @property
    def plan(self) -> TrainingPlan:
        return self.spec.training

    @property
    def folder(self) -> Path:
        """Checkpoints, scores and bundles of this dataset."""
        return dataset_folder(self.settings, self.spec.name)

    def once(
        self,
        name: str,
        inputs: Mapping[str, Any],
        kind: type[T],
        compute: Callable[[], T],
        is_current: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """Run a step unless its result is already there (see pipelines.steps)."""
        step = f"{self.spec.name}-{name}"
        return once(self.settings.steps, step, inputs, kind, compute, is_current, self.settings.keys)

    @contextmanager
    def reporting(self, what: str) -> Iterator[None]:
        """Tell that a piece of work without countable parts begins, and that it is done."""
        self.report(what, 0, 1)
        yield
        self.report(what, 1, 1)

    def counting(self, what: str, total: int) -> Callable[[], None]:
        """Tell that work of `total` parts begins; the answer is to be called after each part."""
        done = count(1)
        self.report(what, 0, total)
        return lambda: self.report(what, next(done), total)

    def is_recent(self, measured_at: str | None) -> bool:
        """Whether what was measured then (ISO 8601, UTC) may still be judged; older is measured again."""
        return not too_old(measured_at, self.policy.max_age_hours, now())

    def windows(self, prepared: Prepared, spec: DatasetSpec | None = None) -> Windows:
        """Windows over the snapshot, built once per process and split."""
        spec = spec or self.spec
        key = f"{prepared.digest()}-{spec.digest()}"
        if key not in self._windows:
            self._windows[key] = Windows(prepared.snapshot, spec, prepared.preprocessing)
        return self._windows[key]


def dataset_folder(settings: Settings, name: str) -> Path:
    return settings.home / "datasets" / name


@contextmanager
def training_turn(settings: Settings, name: str, wait: bool = True) -> Iterator[None]:
    """One rollout or retraining of a dataset at a time, and one training on this home's accelerator.

    The kernel frees both locks with the process, however it ends. A person is told at once that something is
    at work (InputError where `wait` is False); a flow waits.
    """
    with (
        exclusive_lock(settings.home / f"{name}.lock", wait),
        exclusive_lock(settings.home / "training.lock", wait),
    ):
        yield


def open_job(dataset: Path, policy: Path, settings: Settings, report: Report) -> Job:
    """Read every file first, so that a mistake in one costs nothing; then open and reconcile the stores."""
    return open_job_of(load_spec(dataset), load_policy(policy), settings, report)


def open_job_of(spec: DatasetSpec, policy: Policy, settings: Settings, report: Report) -> Job:
    """The stores, reconciled, for a dataset and a policy that were read already."""
    log = ReleaseLog.open(settings)
    tracker = Tracker.open(settings)
    changes = tuple(reconcile(log, tracker))
    warn_of(changes)
    journal = Journal(settings.home, spec.name, report)
    return Job(settings, spec, policy, tracker, log, journal, alias_changes=changes, note=journal.note)
