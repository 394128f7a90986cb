"""Scoring and validation of many entities in pieces that any process can work on, and putting them together.

A piece is a small record; what comes of it lies in a file that is named after the piece, so a piece that is
done is not done again, whoever dies. Who runs the pieces is no business of this module: flows.dask does.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from pipelines.checkpoint import Checkpoint
from pipelines.data.preprocessing import Preprocessing
from pipelines.data.snapshot import Snapshot
from pipelines.data.spec import DatasetSpec
from pipelines.data.windows import Windows, offsets_of
from pipelines.files import replace_file
from pipelines.scoring import Scores, file_of, keep_scores, load_pieces, model_scorer, scored_arrays
from validation.data import Contract, DataReport, together, validate_parts
from validation.record import Record

PIECE_WINDOWS = 1024
"""Windows of a piece of scoring."""
PIECE_ROWS = 1 << 20
"""Rows that a piece of validation has at least, where there are as many; entities are not cut."""
T = TypeVar("T", bound=Record)
R = TypeVar("R", bound=Record)


class Spread(Protocol):
    """Runs a function of this module on every piece, anywhere, and returns the results in order."""

    def __call__(self, function: Callable[[T], R], pieces: Sequence[T]) -> list[R]: ...


class ScoringPiece(Record):
    """Cutoffs number `first` to `last` of a part."""

    snapshot: Snapshot
    spec: DatasetSpec
    preprocessing: Preprocessing
    checkpoint: Checkpoint
    part: str
    density: float | None
    folder: str
    first: int
    last: int


class ScoredPiece(Record):
    """Where its arrays lie."""

    path: str
    num_windows: int


class ValidationPiece(Record):
    """Rows number `first` to `first + num_rows`: some whole entities."""

    snapshot: Snapshot
    contract: Contract
    share: float
    folder: str
    first: int
    num_rows: int


def score_in_pieces(
    spread: Spread,
    checkpoint: Checkpoint,
    windows: Windows,
    part: str,
    density: float | None,
    subject: str,
    folder: Path,
) -> Scores:
    """What `scoring.score_model` gives, in pieces that `spread` runs; RuntimeError for a lost window."""
    cutoffs = windows.cutoffs(part)
    pieces = [
        ScoringPiece(
            snapshot=windows.snapshot,
            spec=windows.spec,
            preprocessing=windows.preprocessing,
            checkpoint=checkpoint,
            part=part,
            density=density,
            folder=str(folder / "pieces"),
            first=first,
            last=min(first + PIECE_WINDOWS, len(cutoffs)),
        )
        for first in range(0, len(cutoffs), PIECE_WINDOWS)
    ]
    done = spread(score_piece, pieces)
    arrays = load_pieces([Path(piece.path) for piece in done])
    scored_first = cutoffs if windows.horizon else cutoffs - windows.lookback
    if not np.array_equal(arrays["rows"][:, 0], scored_first):
        raise RuntimeError(
            f"{folder}: {len(arrays['rows'])} windows of {len(cutoffs)} came back, or not in order"
        )
    scores = keep_scores(arrays, windows, part, subject, checkpoint.sha256, folder, density)
    for piece in done:
        Path(piece.path).unlink(missing_ok=True)
    return scores


def score_piece(piece: ScoringPiece) -> ScoredPiece:
    """Score the piece's windows, unless they lie there already."""
    path = Path(piece.folder) / f"{piece.digest()}.npz"
    if not path.exists():
        parts = piece.snapshot, piece.spec, piece.preprocessing
        windows = _windows(*(part.model_dump_json() for part in parts))
        cutoffs = windows.cutoffs(piece.part)[piece.first : piece.last]
        score = model_scorer(piece.checkpoint, piece.density)
        replace_file(path, file_of(scored_arrays(windows, cutoffs, score, lambda _: None)))
    return ScoredPiece(path=str(path), num_windows=piece.last - piece.first)


@lru_cache(maxsize=1)
def _windows(snapshot: str, spec: str, preprocessing: str) -> Windows:
    """Kept by a process from piece to piece; of records as JSON, which has a hash."""
    return Windows(
        Snapshot.model_validate_json(snapshot),
        DatasetSpec.model_validate_json(spec),
        Preprocessing.model_validate_json(preprocessing),
    )


def validate_in_pieces(
    spread: Spread, snapshot: Snapshot, contract: Contract, docs: Path, aside: Path, share: float
) -> DataReport:
    """What `validation.data.validate_parts` gives, of pieces of whole entities that `spread` had done.

    That a label is positive somewhere only the whole table shows: it was looked for before (preparation).
    """
    from pipelines.data.stream import chunks

    offsets = offsets_of(chunks(snapshot.uri, ["entity"]))
    pieces = [
        ValidationPiece(
            snapshot=snapshot,
            contract=contract.model_copy(update={"positive_label": None, "name": f"{contract.name}-{first}"}),
            share=share,
            folder=str(aside.parent / "pieces" / aside.name),
            first=first,
            num_rows=last - first,
        )
        for first, last in _whole_entities(offsets)
    ]
    reports = spread(validate_piece, pieces)
    report = together(reports, [piece.first for piece in pieces], contract, docs, aside, share)
    shutil.rmtree(aside.parent / "pieces" / aside.name, ignore_errors=True)
    return report


def validate_piece(piece: ValidationPiece) -> DataReport:
    """Check the piece's rows, unless that was done; docs and rows set aside lie in the piece's folder."""
    place = Path(piece.folder) / piece.digest()
    record = place / "report.json"
    if record.exists():
        return DataReport.model_validate_json(record.read_bytes())
    report = validate_parts(
        _rows(piece), piece.contract, place / "docs", place / "aside", max_quarantined_share=piece.share
    )
    replace_file(record, report.model_dump_json().encode())
    return report


def _rows(piece: ValidationPiece) -> Iterator[Any]:
    """The piece's rows as frames of bounded size."""
    import polars as pl

    from pipelines.data.stream import CHUNK_ROWS

    table, last = pl.scan_parquet(piece.snapshot.uri), piece.first + piece.num_rows
    for first in range(piece.first, last, CHUNK_ROWS):
        yield table.slice(first, min(CHUNK_ROWS, last - first)).collect().to_pandas()


def _whole_entities(offsets: np.ndarray) -> list[tuple[int, int]]:
    """First row and end of runs of entities, each of PIECE_ROWS rows or more."""
    found, first = [], 0
    for end in offsets[1:]:
        if end - first >= PIECE_ROWS or end == offsets[-1]:
            found.append((int(first), int(end)))
            first = end
    return found
