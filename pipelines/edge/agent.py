"""The agent: scores rows as they come, and writes every answer exactly once.

What counts is the journal (pipelines.edge.journal). At a start the rows that windows still need are read
again, from the last snapshot and what the journal says was read since, so that a kill at any instant
changes no answer. Every line of input gets an answer (scores, or an error that names file and line), is the
context of a window, or waits for its window to be whole; `Counts` says how many did which.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.edge.governor import Governor, Target, table_of
from pipelines.edge.intake import STDIN, Line, Position, Row, file_lines, parse
from pipelines.edge.journal import PERIOD, SEGMENT_BYTES, Journal, make_folder, read_journal, seal, unseal
from pipelines.edge.metrics import Limits, Record, Scored, Watch
from pipelines.edge.rows import encode_readings
from pipelines.edge.runtime import EdgeModel
from pipelines.edge.series import Shape, Windows, read_as, reads_of
from pipelines.edge.spool import Spool, audited_row
from pipelines.files import remove_drafts, replace_file
from pipelines.process_memory import resident_bytes
from validation.errors import InputError

COMMIT_LINES = 512
COMMIT_SECONDS = 0.25
"""An answer waits so long at most for others to be written with it."""
MAX_RAW = 4096
"""Bytes of a refused line that its answer repeats."""


class Counts(NamedTuple):
    """Where the lines went; context is what remains of `lines`."""

    lines: int = 0
    blank: int = 0
    scored: int = 0
    errors: int = 0
    waiting: int = 0

    @property
    def context(self) -> int:
        return self.lines - self.blank - self.scored - self.errors - self.waiting


class Loaded(NamedTuple):
    """A bundle ready to answer."""

    name: str
    model: EdgeModel


class Options(NamedTuple):
    """How one agent runs."""

    ignored: tuple[str, ...] = ()
    target: Target = Target()
    limits: Limits = Limits()
    audit_every: int = 10
    """One in so many periods of 256 records is audited."""
    spool_bytes: int = 64 << 20
    keep_bytes: int | None = None
    """Of answers; None keeps them all."""
    segment_bytes: int = SEGMENT_BYTES


class Agent:
    """One agent over the folder `state`, which no other process uses meanwhile."""

    def __init__(
        self,
        state: Path,
        loaded: Loaded,
        source: Path | None,
        options: Options | None = None,
        score: Callable[[EdgeModel, Any, float], Any] = EdgeModel.score,
    ) -> None:
        """`source` is the file or folder that rows come from, None where they come by standard input.

        Raises InputError where what was read before is no longer there to be read again.
        """
        make_folder(state)
        remove_drafts(state, "snapshot.json")
        self._state, self._source, self._score = state, source, score
        self._options = options = options or Options()
        self.journal = Journal(state / "answers", options.segment_bytes)
        self._spool = Spool(state / "spool", options.spool_bytes, options.audit_every)
        self.positions: dict[str, Position] = {}
        self._counts = Counts()
        self._audited: dict[str, int] = {}
        """The newest audited period of every entity."""
        self._use(loaded, options.target)
        self._windows, self._ignored = Windows(self._shape), options.ignored
        self._clear()
        self._restore()
        self._spool.close_periods(state / "answers", self.journal.last)

    def _use(self, loaded: Loaded, target: Target) -> None:
        self._loaded = loaded
        self._shape = Shape.of(loaded.model.manifest, loaded.model.preprocessing)
        self._governor = Governor(loaded.model.manifest, target)
        self._watch = Watch(self._options.limits)
        self.breach = ""
        """Why the live bundle has to go, once it has."""
        self.is_to_reload = False
        """The budget fell for memory's sake; a model loaded anew gives memory back."""

    def change(self, loaded: Loaded) -> None:
        """Go on with another bundle, without a target where it has no table to keep one by.

        Rows that wait are kept where it reads the same fields and windows.
        """
        self.commit()
        self._use(loaded, self._options.target if table_of(loaded.model.manifest) else Target())
        self._go_on()

    def reload(self, model: EdgeModel) -> None:
        """The same bundle, loaded anew at the present budget."""
        self._loaded, self.is_to_reload = self._loaded._replace(model=model), False

    def _go_on(self) -> None:
        """From here on rows are read as the loaded bundle needs them; the journal says so."""
        if self._windows.shape != self._shape:
            for row in self._windows.give_up():
                self._answer_error(row.file, row.line, "its window never came: another bundle reads others")
            self._windows = Windows(self._shape)
        self._ignored = self._options.ignored
        self._append_note(f"goes on with bundle {self._loaded.name}")

    # taking lines ---------------------------------------------------------------------------------

    def take(self, lines: Iterable[Line | None]) -> Iterator[list[Record]]:
        """Take lines until they end; answers are yielded once they are on the disk.

        The caller may stop at any yield. Raises OSError where the disk is full: then nothing of the
        lines since the last yield counts, and they are read again by the next agent.
        """
        for line in lines:
            if line is not None:
                if self._lines and line.file != self._last.file:
                    yield self.commit()
                self._feed(line, self._answer_window)
            if self._is_due(is_idle=line is None):
                yield self.commit()
        yield self.commit()

    def _is_due(self, is_idle: bool) -> bool:
        if not self._lines:
            return is_idle
        age = time.monotonic() - self._since
        return is_idle or self._lines >= COMMIT_LINES or (bool(self._answers) and age > COMMIT_SECONDS)

    def _feed(self, line: Line, on_window: Callable[[list[Row]], None]) -> None:
        self._lines, self._last = self._lines + 1, line
        if self._source is None:
            self._raw.append(None if line.is_cut else line.content.decode(errors="surrogateescape"))
        if not line.content and not line.is_cut:
            self._blank += 1
            return
        try:
            row = parse(line, self._windows.shape.fields, self._ignored)
            window, given_up = self._windows.push(row)
        except ValueError as error:
            self._answer_error(line.file, line.number, str(error), line.content)
            return
        for lost in given_up:
            self._answer_error(lost.file, lost.line, "its window never came: time was set back")
        if window:
            on_window(window)

    def _answer_window(self, window: list[Row]) -> None:
        started, density = time.perf_counter(), self._governor.density
        asked = window[-self._shape.asked :]
        try:
            model = self._loaded.model
            readings = [row.reading for row in window]
            inputs = encode_readings(readings, model.preprocessing, model.manifest["contract"])
            scores = self._score(model, inputs, density).tolist()
        except (
            Exception
        ) as error:  # onnxruntime raises its own kinds; the stream goes on whatever a model does
            scores = [[math.nan]] * len(asked)
            failure = f"the model failed ({type(error).__name__})"
        else:
            failure = "the model gave no finite number"
        ms = (time.perf_counter() - started) * 1e3
        is_answered = all(math.isfinite(value) for row in scores for value in row)
        self._note_window(Scored(round(ms, 4), density, is_answered))
        for row, values in zip(asked, scores, strict=True):
            if all(map(math.isfinite, values)):
                about = {"file": row.file, "line": row.line, "entity": row.entity, "time": row.time}
                self._answers.append({**about, "scores": values})
            else:
                self._answer_error(row.file, row.line, failure)
        if self._spool.is_audited(self.journal.last + 1):
            self._audit(window, scores)

    def _note_window(self, scored: Scored) -> None:
        memory = resident_bytes()
        self._memory = max(self._memory, memory)
        self._scored.append(scored)
        self.is_to_reload |= self._governor.seen(scored.ms, memory)
        self.breach = self.breach or self._watch.add(scored, memory)

    def _audit(self, window: list[Row], scores: list[list[float]]) -> None:
        """The rows asked about; with their context where the audit begins with this window."""
        period, entity = self.journal.last // PERIOD, window[0].entity
        context = len(window) - self._shape.asked
        if self._audited.get(entity) != period and self._audited.get(entity) != period - 1:
            self._rows += [audited_row(row, self._shape, None) for row in window[:context]]
        self._audited[entity] = period
        asked = zip(window[context:], scores, strict=True)
        finite = ((row, values if all(map(math.isfinite, values)) else None) for row, values in asked)
        self._rows += [audited_row(row, self._shape, values) for row, values in finite]

    def _answer_error(self, file: str, line: int, error: str, content: bytes = b"") -> None:
        answer: Record = {"file": file, "line": line, "error": error}
        if content:
            answer["row"] = content[:MAX_RAW].decode(errors="replace")
        self._answers.append(answer)

    # committing -----------------------------------------------------------------------------------

    def commit(self) -> list[Record]:
        """Write what was answered since the last time, and how far the input was read for it."""
        if not self._lines:
            return []
        record = self._record()
        if self._rows:
            self._spool.keep_rows(self.journal.last + 1, self._loaded.name, self._rows)
        self.journal.append(record)
        self._count(record)
        self._clear()
        self._after_commit()
        return record["answers"]

    def _record(self) -> Record:
        last = self._last
        record: Record = {
            "file": last.file,
            "end": last.end,
            "line": last.number,
            "check": last.check,
            "lines": self._lines,
            "blank": self._blank,
            "bundle": self._loaded.name,
            "windows": [list(window) for window in self._scored],
            "memory": self._memory,
            "answers": self._answers,
        }
        return record | ({"raw": self._raw} if self._source is None else {})

    def _append_note(self, note: str) -> None:
        """A record of something that happened beside the rows."""
        reads = reads_of(self._windows.shape, self._ignored)
        record = {"note": note, "bundle": self._loaded.name, "reads": reads}
        record |= {"answers": self._answers, "lines": 0, "blank": 0}
        self.journal.append(record)
        self._count(record)
        self._clear()
        self._after_commit(is_changed=True)

    def _count(self, record: Record) -> None:
        answers = record["answers"]
        scored = sum("scores" in answer for answer in answers)
        counts = self._counts
        self._counts = Counts(
            counts.lines + record["lines"],
            counts.blank + record["blank"],
            counts.scored + scored,
            counts.errors + len(answers) - scored,
        )
        if record["lines"]:
            self.positions[record["file"]] = Position(record["end"], record["line"], record["check"])

    def _clear(self) -> None:
        self._lines, self._blank, self._memory, self._since = 0, 0, 0, time.monotonic()
        self._answers: list[Record] = []
        self._scored: list[Scored] = []
        self._rows: list[Record] = []
        self._raw: list[str | None] = []

    def _after_commit(self, is_changed: bool = False) -> None:
        is_new_segment = self.journal.is_segment_full()
        if is_changed or is_new_segment or self.journal.last % PERIOD == 0:
            self.snapshot()
        if self.journal.last % PERIOD == 0:
            self._spool.close_periods(self._state / "answers", self.journal.last)
        if is_new_segment:
            self.journal.begin_segment()
            if self._options.keep_bytes is not None:
                self.journal.drop_oldest(self._options.keep_bytes)

    @property
    def counts(self) -> Counts:
        """Of everything that was ever taken."""
        return self._counts._replace(waiting=self._windows.num_waiting())

    @property
    def bundle(self) -> str:
        """Name of the one that answers."""
        return self._loaded.name

    @property
    def note(self) -> str:
        return self._governor.note

    # starting again -------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write down what windows still need, so that the next start reads little again."""
        content = {
            "through": self.journal.last,
            "reads": reads_of(self._windows.shape, self._ignored),
            "bundle": self._loaded.name,
            "positions": {file: list(position) for file, position in self.positions.items()},
            "counts": list(self._counts),
            "series": list(self._windows.state()),
            "audited": self._audited,
        }
        replace_file(self._state / "snapshot.json", seal(content))

    def close(self) -> None:
        """Write a snapshot; the next start goes on from there."""
        self.commit()
        self.snapshot()
        self.journal.close()

    def _restore(self) -> None:
        snapshot = self._read_snapshot()
        through, bundle = (snapshot["through"], snapshot["bundle"]) if snapshot else (0, "")
        if snapshot:
            self._resume(snapshot)
        for record in read_journal(self._state / "answers", through):
            if record["n"] != through + 1:
                raise InputError(f"{self._state}: records before {record['n']} are gone; restore the folder")
            through, bundle = record["n"], record["bundle"]
            self._read_again(record)
        as_now = (bundle, self._windows.shape, self._ignored)
        if as_now != (self._loaded.name, self._shape, self._options.ignored):
            self._go_on()

    def _read_snapshot(self) -> Record | None:
        path = self._state / "snapshot.json"
        snapshot = unseal(path.read_bytes()) if path.exists() else None
        # A journal that ends earlier lost records that were on the disk: then they are made anew.
        return snapshot if snapshot and snapshot["through"] <= self.journal.last else None

    def _resume(self, snapshot: Record) -> None:
        self.positions = {file: Position(*place) for file, place in snapshot["positions"].items()}
        self._counts, self._audited = Counts(*snapshot["counts"]), snapshot["audited"]
        shape, self._ignored = read_as(snapshot["reads"])
        self._windows = Windows.restored(shape, snapshot["series"])

    def _read_again(self, record: Record) -> None:
        """Rows that a record's answers were made of, so that later windows have their past."""
        if reads := record.get("reads"):
            shape, self._ignored = read_as(reads)
            if shape != self._windows.shape:
                self._windows = Windows(shape)
        if record["lines"]:
            for line in self._lines_of(record):
                self._feed(line, lambda window: None)
        self._count(record)
        self._clear()

    def _lines_of(self, record: Record) -> Iterator[Line]:
        since = self.positions.get(record["file"], Position())
        if record["file"] == STDIN:
            for number, text in enumerate(record["raw"], start=since.line + 1):
                content = (text or "").encode(errors="surrogateescape")
                yield Line(STDIN, number, record["end"], content, is_cut=text is None)
            return
        if self._source is None:
            raise InputError(f"{record['file']}: was read before this stream; give --device another folder")
        path = self._source / record["file"] if self._source.is_dir() else self._source
        if not path.exists():
            raise InputError(f"{path}: was read up to line {record['line']} and is gone; put it back")
        for line in file_lines(path, since):
            if line.end > record["end"]:
                return
            yield line


def answers_of(state: Path) -> Iterator[Record]:
    """Every answer that was ever written, in order, each once."""
    for record in read_journal(state / "answers"):
        yield from record["answers"]
