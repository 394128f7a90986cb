"""What a device has to tell when it is next online: sums and audited rows, bounded on its disk.

Audited rows of a record lie on the disk before the record does, under its number, so that a record that
counts has its rows; one that is written anew after a power cut replaces them. When there is no room the
oldest rows go, and a note says how many. Sums are small: beyond a number of files, the oldest are added up.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.edge.intake import Row
from pipelines.edge.journal import PERIOD, Record, make_folder, read_journal, seal, unseal
from pipelines.edge.metrics import deciles, merged, summed
from pipelines.edge.series import Shape
from pipelines.files import remove_drafts, replace_file, sync_folder

MAX_SUMS = 200
MIN_REFERENCE = 500
"""Scores that a reference distribution takes at least."""


class Dropped(NamedTuple):
    """Audited rows that no longer fitted."""

    files: int = 0
    rows: int = 0
    bytes: int = 0
    through: int = 0
    """Number of the last record that lost its rows."""


class Spool:
    """The folders `rows` and `sums` below `folder`."""

    def __init__(self, folder: Path, max_bytes: int, every: int) -> None:
        """Rows of one in `every` periods are audited, all of them where it is 1."""
        self._rows, self._sums = folder / "rows", folder / "sums"
        self._max_bytes, self._every = max_bytes, every
        make_folder(self._rows)
        make_folder(self._sums)
        for each in (folder, self._rows, self._sums):
            remove_drafts(each)
        self._note = folder / "dropped.json"
        self.dropped = Dropped(*json.loads(self._note.read_bytes())) if self._note.exists() else Dropped()
        self._remove(path for path in self._files() if int(path.stem) <= self.dropped.through)
        self._sizes = {path: path.stat().st_size for path in self._files()}

    def is_audited(self, number: int) -> bool:
        """Whether the rows of that record are kept."""
        return (number - 1) // PERIOD % self._every == 0

    def keep_rows(self, number: int, bundle: str, rows: list[Record]) -> None:
        """Keep a record's audited rows, and let the oldest go where there is no room."""
        path = self._rows / f"{number:012d}.json"
        content = seal({"n": number, "bundle": bundle, "rows": rows})
        replace_file(path, content)
        self._sizes[path] = len(content)
        self._make_room()

    def close_periods(self, journal: Path, last: int) -> None:
        """Sum up every whole period of the journal that was not yet, up to record `last`."""
        note = self._sums.parent / "closed"
        closed = int(note.read_text()) if note.exists() else 0
        for period in range(closed, last // PERIOD):
            self._close(lambda first=period * PERIOD: _period(journal, first))
            replace_file(note, str(period + 1).encode())

    def _close(self, period: Callable[[], Iterator[Record]]) -> None:
        bundle = max(((record["n"], record["bundle"]) for record in period()), default=(0, ""))[1]
        reference = self.reference(bundle)
        sums = summed(period(), reference)
        replace_file(self._sum_file(sums), json.dumps(sums).encode())
        if not reference:
            self._begin_reference(period(), bundle)
        files = sorted(self._sums.glob("*-*.json"))
        if len(files) > MAX_SUMS:
            oldest = [json.loads(path.read_bytes()) for path in files[:2]]
            both = merged(*oldest)
            replace_file(self._sum_file(both), json.dumps(both).encode())
            self._remove(files[:2])

    def reference(self, bundle: str) -> list[float]:
        """Deciles of the first scores that this bundle gave here; [] until there were enough."""
        path = self._sums.parent / f"reference-{bundle}.json"
        return json.loads(path.read_bytes()) if path.exists() else []

    def _begin_reference(self, records: Iterator[Record], bundle: str) -> None:
        own = (record for record in records if record["bundle"] == bundle)
        answers = (answer for record in own for answer in record["answers"])
        scores = [value for answer in answers for value in answer.get("scores", ())]
        if len(scores) >= MIN_REFERENCE:
            path = self._sums.parent / f"reference-{bundle}.json"
            replace_file(path, json.dumps(deciles(scores)).encode())

    def _sum_file(self, sums: Record) -> Path:
        return self._sums / f"{sums['first']:012d}-{sums['last']:012d}.json"

    def _make_room(self) -> None:
        if sum(self._sizes.values()) <= self._max_bytes:
            return
        oldest = sorted(path for path in self._sizes if path.exists())  # what was synced is gone
        self._sizes = {path: self._sizes[path] for path in oldest}
        excess, going = sum(self._sizes.values()) - self._max_bytes, []
        while excess > 0 and len(oldest) > len(going) + 1:
            going.append(oldest[len(going)])
            excess -= self._sizes[going[-1]]
        if going:
            self._drop(going)

    def _drop(self, going: list[Path]) -> None:
        rows = sum(len((unseal(path.read_bytes()) or {"rows": []})["rows"]) for path in going)
        size = sum(self._sizes.pop(path) for path in going)
        files, counted, held, _ = self.dropped
        through = int(going[-1].stem)
        self.dropped = Dropped(files + len(going), counted + rows, held + size, through)
        replace_file(self._note, json.dumps(self.dropped).encode())
        self._remove(going)

    def _files(self) -> list[Path]:
        return sorted(self._rows.glob("*.json"))

    def _remove(self, paths: Iterable[Path]) -> None:
        folders = set()
        for path in paths:
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)


def _period(journal: Path, after: int) -> Iterator[Record]:
    return itertools.takewhile(lambda record: record["n"] <= after + PERIOD, read_journal(journal, after))


def audited_row(row: Row, shape: Shape, scores: list[float] | None) -> Record:
    """A row as it came, with its scores where it was asked about."""
    names = (*shape.fields.numbers, *([shape.fields.outcome] if shape.fields.outcome else []))
    numbers = (None if math.isnan(number) else number for number in row.reading.numbers)
    texts = dict(zip(shape.fields.texts, row.reading.texts, strict=True))
    named = dict(zip(names, numbers, strict=True)) | texts
    return {"time": row.time, "entity": row.entity, **named, "scores": scores}
