"""A batch arrives: what it is taken for, what is kept of it, and that nothing is dropped in silence."""

import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import batches as arrivals
from pipelines.batches import batches
from pipelines.candidates import train_candidate
from pipelines.data.spec import load_spec
from pipelines.job import Job
from pipelines.labels import attach_labels
from pipelines.mlflow_words import NOTE
from pipelines.monitor import MonitorReport, monitor_batch, reports
from pipelines.preparation import source_data
from pipelines.registry import Tracker
from pipelines.release import start_pilot
from pipelines.release_log import ReleaseLog
from pipelines.report import leaving
from pipelines.report.leaving import leave_batch, leave_missing
from pipelines.report.story import PAGE
from pipelines.report.telling import batch_folder
from pipelines.settings import Settings
from tests.tiny_rollout import pump_table, write_dataset, write_policy
from validation.errors import InputError
from validation.policy import load_policy

KNOWN_UNTIL = datetime(2024, 5, 11)
DAYS = 5
Change = Callable[[pl.DataFrame], pl.DataFrame]
Send = Callable[..., MonitorReport]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, store: Settings, tracker: Tracker) -> Job:
    """The pump up to May, its dense model live."""
    folder = tmp_path_factory.mktemp("monitored")
    table = pump_table().filter(pl.col("at") < KNOWN_UNTIL)
    spec = load_spec(write_dataset(folder, "monitored", table=table))
    policy = load_policy(write_policy(folder))
    job = Job(store, spec, policy, tracker, ReleaseLog.open(store), lambda *_: None)
    start_pilot(job, train_candidate(job, source_data(job), "dense"), "in use")
    return job


def rows_from(first: datetime) -> pl.DataFrame:
    return pump_table().filter(pl.col("at").is_between(first, first + timedelta(days=DAYS), closed="left"))


@pytest.fixture
def send(live: Job, tmp_path: Path) -> Send:
    """Monitor five days of the pump from `first` on, changed by `change`."""

    def one(first: datetime, change: Change = lambda rows: rows) -> MonitorReport:
        path = tmp_path / f"{first:%m%d}.csv"
        change(rows_from(first)).write_csv(path)
        return monitor_batch(live, path)

    return one


def is_set_aside(job: Job, report: MonitorReport) -> bool:
    """The files lie in quarantine as they came, the report is kept, and no row is believed."""
    kept = Path(report.quarantine or "") / Path(report.arrival.source).name
    is_same = kept.read_bytes() == Path(report.arrival.source).read_bytes()
    is_reported = report.batch in {each.batch for each in reports(job.settings, job.spec.name)}
    return is_same and is_reported and report.batch not in {each.content_hash for each in believed(job)}


def believed(job: Job) -> list[arrivals.Batch]:
    return batches(job.settings, job.spec.name)


def test_sound_rows_are_scored_and_known_from_then_on_and_counted_once(live: Job, send: Send) -> None:
    report = send(KNOWN_UNTIL)
    assert report.decision in ("none", "watch", "retrain")
    assert (report.arrival.num_rows, report.arrival.start) == (24 * DAYS, KNOWN_UNTIL)
    assert report.value is not None
    assert report.drift is not None
    assert {effect.kind for effect in report.drift.effects} >= {"inputs", "relations", "predictions"}
    assert report.batch in {each.content_hash for each in believed(live)}
    again = send(KNOWN_UNTIL)
    assert again.model_dump_json() == report.model_copy(update={"repeated": True}).model_dump_json()
    assert len(believed(live)) == 1


def test_outcomes_that_come_later_find_their_rows_or_are_set_aside(
    live: Job, send: Send, tmp_path: Path
) -> None:
    first = KNOWN_UNTIL + timedelta(days=DAYS)
    report = send(first, lambda rows: rows.with_columns(tripped=pl.lit(None, pl.Int64)))
    assert report.value is None
    assert report.drift is not None
    assert report.drift.performance is None
    assert report.drift.estimate is not None
    labels = (
        rows_from(first)
        .with_row_index()
        .with_columns(at=pl.when(pl.col("index") == 0).then(datetime(2030, 1, 1)).otherwise("at"))
    )
    labels.drop("index").write_csv(tmp_path / "labels.csv")
    matched = attach_labels(live, tmp_path / "labels.csv")
    assert (matched.num_new, matched.num_unknown, matched.num_contradicting) == (24 * DAYS - 1, 1, 0)
    assert matched.quarantine is not None
    assert pl.read_parquet(matched.quarantine)["quarantine_reason"].to_list() == ["no batch holds such a row"]
    [looked_at] = matched.monitored
    assert looked_at.batch == report.batch
    assert looked_at.value is not None
    wrong = labels.drop("index").with_columns(tripped=1 - pl.col("tripped"))
    wrong.write_csv(tmp_path / "wrong.csv")
    contradicted = attach_labels(live, tmp_path / "wrong.csv")
    assert (contradicted.num_new, contradicted.num_contradicting) == (0, 24 * DAYS - 1)
    assert attach_labels(live, tmp_path / "labels.csv").num_repeated == 24 * DAYS - 1


def test_a_batch_that_fills_a_gap_is_kept_and_decides_nothing(live: Job, send: Send) -> None:
    later = KNOWN_UNTIL + timedelta(days=3 * DAYS)
    ahead = send(later)
    assert ahead.decision != "fault"
    assert ahead.reasons[-1].endswith("are missing: nothing before was read")
    report = send(later - timedelta(days=DAYS))
    assert (report.decision, report.arrival.is_late, report.drift) == ("none", True, None)
    assert "late: rows after" in report.reasons[0]
    assert report.batch in {each.content_hash for each in believed(live)}


LATER = KNOWN_UNTIL + timedelta(days=6 * DAYS)
STUCK = pl.col("load").is_not_null() & (pl.int_range(pl.len()) > 40)
FAULTS: dict[str, tuple[Change, str]] = {
    "empty": (lambda rows: rows.clear(), "no rows"),
    "out of order": (lambda rows: rows.reverse(), "out of order: row 1"),
    "repeats rows": (
        lambda rows: rows.with_columns(at=pl.col("at") - timedelta(days=5 * DAYS)).head(100),
        "repeats rows that are known",
    ),
    "from the future": (
        lambda rows: rows.with_columns(at=pl.col("at").dt.offset_by("50y")),
        "from the future",
    ),
    "no column": (lambda rows: rows.drop("load"), "unknown column 'load'"),
    "another type": (lambda rows: rows.with_columns(load=pl.lit("high")), "column 'load' holds String"),
    "unsound": (lambda rows: rows.with_columns(load=pl.lit(99.0)), "its rows are not sound"),
    "stuck": (
        lambda rows: rows.with_columns(load=pl.when(STUCK).then(0.3).otherwise("load")),
        "stuck sensor: load stood still for",
    ),
    "another unit": (
        lambda rows: rows.with_columns(plan=pl.col("plan") * 100),
        "unit change: plan looks like",
    ),
    "a missing site": (
        lambda rows: rows.with_columns(site=pl.lit("north")),
        "missing site: no row of site south",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_data_is_set_aside_with_an_alert_and_never_trains(
    fault: str, live: Job, send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    change, words = FAULTS[fault]
    report = send(LATER, change)
    assert report.decision == "fault"
    assert words in report.reasons[0]
    assert is_set_aside(live, report)
    assert any("data fault" in record.message and record.levelname == "ERROR" for record in caplog.records)


def test_no_batch_at_all_is_the_callers_mistake(live: Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no batch there"):
        monitor_batch(live, tmp_path / "absent.csv")


def test_a_dataset_without_a_live_model_cannot_be_monitored(live: Job, tmp_path: Path) -> None:
    other: Any = live.spec.model_copy(update={"name": "nothing_live"})
    rows_from(KNOWN_UNTIL).write_csv(tmp_path / "batch.csv")
    with pytest.raises(InputError, match="nothing is live"):
        monitor_batch(Job(live.settings, other, live.policy, live.tracker, live.log, live.report), tmp_path)


def test_every_batch_leaves_a_page_a_sound_one_with_what_was_read_of_it(live: Job, send: Send) -> None:
    sound = send(KNOWN_UNTIL)
    left = leave_batch(live, sound)
    assert (left.story.kind, left.story.outcome) == ("monitor", sound.decision)
    assert left.story.why == sound.reasons
    assert left.story.windows
    assert left.story.windows[0].explanation.snapshot == sound.batch
    assert [each.is_this for each in left.story.periods].count(True) == 1
    assert (left.page.parent / left.story.lineage.docs).is_file()
    broken = leave_batch(live, send(KNOWN_UNTIL + timedelta(days=DAYS), lambda rows: rows.drop("load")))
    assert broken.story.outcome == "fault"
    assert broken.story.windows == ()
    assert "DATA FAULT" in broken.page.read_text(encoding="utf-8")


def test_a_page_that_its_run_was_killed_before_is_made_by_the_next(
    live: Job, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = send(KNOWN_UNTIL + timedelta(days=2 * DAYS), lambda rows: rows.drop("load"))
    page = batch_folder(live, report) / PAGE
    if (child := os.fork()) == 0:  # the record is kept, half of the page is written, and the power goes
        monkeypatch.setattr(leaving, "write_page", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        leave_batch(live, report)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (page.parent / "report.json").exists()
    assert page in {left.page for left in leave_missing(live)}
    assert "DATA FAULT" in page.read_text(encoding="utf-8")
    assert "DATA FAULT" in live.tracker.get_run(report.run_id).data.tags[NOTE]
    assert list(leave_missing(live)) == []


def test_a_page_that_cannot_be_made_holds_nobody_up(
    live: Job, send: Send, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = send(KNOWN_UNTIL + timedelta(days=3 * DAYS), lambda rows: rows.drop("load"))
    lost = InputError("monitored: the live model is gone")
    monkeypatch.setattr(leaving, "of_batch", lambda *_: (_ for _ in ()).throw(lost))
    assert list(leave_missing(live)) == []
    assert f"{batch_folder(live, report)}: no page can be made: {lost}" in caplog.text


def test_drift_at_the_edge_reaches_the_monitor_when_devices_sync(live: Job, tmp_path: Path) -> None:
    """A device of the live model scores rows that moved; what it leaves in a store is such a batch."""
    from pipelines.edge.agent import Agent, Loaded, Options
    from pipelines.edge.building import build_edge_bundle
    from pipelines.edge.collecting import collect
    from pipelines.edge.intake import read_lines
    from pipelines.edge.runtime import EdgeModel
    from pipelines.edge.stores import FolderStore
    from pipelines.edge.sync import sync
    from pipelines.release import live_checkpoint
    from pipelines.signing import load_key

    champion = live_checkpoint(live.settings, live.spec.name)
    bundle = build_edge_bundle(live.settings, live.spec, champion)
    model = EdgeModel.load(Path(bundle.folder), load_key(live.settings.keys).public_key())
    first = KNOWN_UNTIL + timedelta(days=4 * DAYS)
    before, moved = (
        rows_from(first - timedelta(days=DAYS)),
        rows_from(first).with_columns(pl.col("load") + 2),
    )
    lines = tmp_path / "rows.jsonl"
    pl.concat([before[-64:], moved]).rename({"at": "time"}).write_ndjson(lines)
    agent = Agent(tmp_path / "device", Loaded("1-live", model), lines, Options(audit_every=1))
    scored = [each for some in agent.take(read_lines(str(lines), {}, False)) for each in some]
    agent.close()
    assert len(scored) == 16 * (len(moved) // 16)
    (tmp_path / "store").mkdir()
    store = FolderStore(tmp_path / "store")
    sync(tmp_path / "device", "line-3", store)
    [batch] = collect(store, live.spec, tmp_path / "incoming").batches
    arrived = pl.read_csv(batch, try_parse_dates=True)
    arrived[64:].write_csv(tmp_path / "batch.csv")  # the first 64 were context, and known to the server
    report = monitor_batch(live, tmp_path / "batch.csv")
    assert report.drift is not None
    assert report.decision in ("watch", "retrain")
    assert any("load" in reason for reason in report.reasons)
