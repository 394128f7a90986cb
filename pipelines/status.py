"""Where every dataset stands, read from what lies on disk; fast, so nothing heavy is imported."""

import json
from pathlib import Path
from typing import Any

from pipelines.approvals import waiting_sentence
from pipelines.clock import to_the_minute
from pipelines.history import datasets_of, let_in
from pipelines.job import dataset_folder
from pipelines.monitoring import live_since, open_alert
from pipelines.release_log import ReleaseEntry, ReleaseLog
from pipelines.rollout import replay
from pipelines.settings import Settings
from validation.record import Record


class Standing(Record):
    """One dataset: what is live and why, and what wants attention. "" where there is nothing to say."""

    dataset: str
    stage: str
    live: int | None
    last_green: int | None
    challenger: int | None
    since: str
    """ISO time since which the live weights are live."""
    why: str
    """Who let it in, and with what reason."""
    verdict: str
    """The last verdict of a gate, its reason and its time."""
    waiting: str
    """The promotion that waits for people, and what to type."""
    alert: str
    monitor: str
    """What was said of the newest batch."""


def standings(settings: Settings) -> list[Standing]:
    """Every dataset that the release log knows, by name. Raises InputError where the log does not hold."""
    entries = ReleaseLog.of(settings).entries()
    return [_standing(settings, entries, name) for name in datasets_of(entries)]


def _standing(settings: Settings, entries: list[ReleaseEntry], name: str) -> Standing:
    state, entry, alert = replay(entries, name), let_in(entries, name), open_alert(settings, entries, name)
    return Standing(
        dataset=name,
        stage=str(state.stage),
        live=state.champion,
        last_green=state.last_green.champion if state.last_green else None,
        challenger=state.challenger,
        since=live_since(entries, name),
        why=f"{entry.decision.action} by {entry.decision.actor}: {entry.decision.reason}" if entry else "",
        verdict=_last_verdict(entries, name),
        waiting=waiting_sentence(state, state.pending) if state.pending else "",
        alert=alert.sentence() if alert else "",
        monitor=_newest_batch(settings, name),
    )


def _last_verdict(entries: list[ReleaseEntry], name: str) -> str:
    judged = [entry for entry in entries if entry.decision.dataset == name and entry.decision.outcome]
    if not judged:
        return ""
    decision = judged[-1].decision
    gate = decision.looked.gate if decision.looked else decision.from_stage
    about = f"{gate} gate on version {decision.version}, {to_the_minute(judged[-1].time)}"
    return f"{decision.outcome}: {about}: {decision.reason}"


def _newest_batch(settings: Settings, name: str) -> str:
    """As pipelines.monitor keeps it; read plainly, because that module brings torch with it."""
    found = [_read(path) for path in (dataset_folder(settings, name) / "monitor").glob("*.json")]
    if not found:
        return ""
    newest = max(found, key=lambda report: report["arrival"]["received_at"])
    when = to_the_minute(newest["arrival"]["received_at"])
    reasons = "; ".join(newest["reasons"]) or "nothing moved"
    return f"{newest['decision']}: {Path(newest['arrival']['source']).name}, {when}: {reasons}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())
