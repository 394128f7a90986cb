"""What a device leaves in a store when it is online: sums, audited rows, and how its live bundle does.

    devices/NAME/report.json                the live bundle: answers, latencies, memory, self-test
    devices/NAME/STATE/sums-FIRST-LAST.json periods of the journal (pipelines.edge.metrics)
    devices/NAME/STATE/rows-N.json          audited rows of record N

A file is removed here once the store has it. What is interrupted is sent again under the same name.
"""

import itertools
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.clock import now
from pipelines.edge.journal import PERIOD, read_back
from pipelines.edge.metrics import MAX_LATENCIES, Record, summed
from pipelines.edge.stores import Store
from pipelines.edge.updates import installed
from pipelines.files import exclusive_lock, replace_file
from validation.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Synced(NamedTuple):
    """What was sent."""

    rows: int
    """Files of audited rows."""
    sums: int
    """Files of sums; the running period's is sent anew each time."""
    dropped_rows: int
    """Audited rows that found no room since this device began."""


def sync(device: Path, name: str, store: Store) -> Synced:
    """Leave everything in the store. Raises StoreError at the first thing that it does not take."""
    if not NAME.fullmatch(name):
        raise InputError(f"device name {name!r}: use letters, digits, '.', '_' and '-', 64 at most")
    with exclusive_lock(device / "sync.lock"):
        store.put(f"devices/{name}/report.json", json.dumps(report(device, name)).encode())
        place, spool = f"devices/{name}/{_state_id(device)}", device / "spool"
        sums = [_sent(store, f"{place}/sums-{path.name}", path) for path in _oldest(spool / "sums")]
        if running := _running(device):
            store.put(f"{place}/sums-{running['first']:012d}-running.json", json.dumps(running).encode())
        rows = [_sent(store, f"{place}/rows-{path.name}", path) for path in _oldest(spool / "rows")]
        return Synced(sum(rows), sum(sums) + bool(running), _dropped(device)["rows"])


def report(device: Path, name: str) -> Record:
    """How the live bundle does: its newest windows on this device, none from before it came."""
    state, counts = installed(device), {"windows": 0, "failed": 0, "lines": 0}
    latencies, memory, scores = [], 0, 0
    for record in _of_bundle(device, state.current):
        windows = record.get("windows", [])
        counts["windows"] += len(windows)
        counts["failed"] += sum(not is_answered for _, _, is_answered in windows)
        counts["lines"] += record["lines"]
        latencies += [ms for ms, _, is_answered in reversed(windows) if is_answered]
        memory = max(memory, record.get("memory", 0))
        scores += sum("scores" in answer for answer in record["answers"])
    return {
        "device": name,
        "sequence": state.sequence,
        "bundle": state.current,
        **counts,
        "scored": scores,
        "latency_ms": latencies[:MAX_LATENCIES],
        "memory_bytes": [each["peak_memory_bytes"] for each in state.self_test]
        + ([memory] if memory else []),
        "refused": state.refused,
        "dropped": _dropped(device),
        "written_at": now(),
    }


def _of_bundle(device: Path, bundle: str) -> Iterator[Record]:
    """Newest first, until they hold as many windows as a report tells, or another bundle's begin.

    Counted in windows, because a record may hold dozens or, where rows come one by one, none.
    """
    windows = 0
    for record in read_back(device / "answers"):
        if windows >= MAX_LATENCIES or record["bundle"] != bundle:
            return
        windows += len(record.get("windows", []))
        yield record


def _running(device: Path) -> Record | None:
    """Sums of the period that is not over."""
    note = device / "spool" / "closed"
    last = PERIOD * (int(note.read_text()) if note.exists() else 0)
    records = [*itertools.takewhile(lambda record: record["n"] > last, read_back(device / "answers"))]
    sums = summed(records[::-1][:PERIOD], _reference(device))
    return sums if sums["last"] else None


def _reference(device: Path) -> list[float]:
    path = device / "spool" / f"reference-{installed(device).current}.json"
    return json.loads(path.read_bytes()) if path.exists() else []


def _sent(store: Store, name: str, path: Path) -> bool:
    """Send a file and remove it here; False where it went meanwhile to make room."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    store.put(name, content)
    path.unlink(missing_ok=True)
    return True


def _oldest(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _dropped(device: Path) -> dict[str, int]:
    path = device / "spool" / "dropped.json"
    files, rows, size, _ = json.loads(path.read_bytes()) if path.exists() else (0, 0, 0, 0)
    return {"files": files, "rows": rows, "bytes": size}


def _state_id(device: Path) -> str:
    """Tells apart a device's files from those it wrote before its disk was wiped."""
    path = device / "state-id"
    if not path.exists():
        replace_file(path, secrets.token_hex(4).encode())
    return path.read_text()
