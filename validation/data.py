"""What a table must look like, and the check of it: refuse a broken table, set bad rows aside, report.

Faults of the whole table (a column that is not there, times out of order) raise InputError before anything is
written. Faults of single rows are found by a Great Expectations checkpoint and quarantined with their reason.
"""

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from validation.data_docs import index_of_pieces, make_offline
from validation.gates import Outcome
from validation.record import Record
from validation.structure import Structure
from validation.suite import NUM_EXAMPLES, ROW, Suite, expectations_of

if TYPE_CHECKING:
    import pandas as pd

REASON = "quarantine_reason"


class Column(Record):
    """One column: its type, whether a value may be missing, and which values are allowed (bounds in)."""

    name: str
    type: Literal["number", "text", "boolean", "time"]
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[str | bool | int | float, ...] = ()


class Contract(Record):
    """What a table promises. `source` is the file to name when it does not keep the promise.

    `key` columns are unique together; `time` does not decrease within an `entity`, and moves by
    `step_seconds` where that is given; `targets` are finite; `positive_label` is a 0/1 column
    with at least one 1.
    """

    name: str
    source: str
    columns: tuple[Column, ...] = Field(min_length=1)
    key: tuple[str, ...] = ()
    time: str | None = None
    entity: str | None = None
    step_seconds: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] = ()
    positive_label: str | None = None


class Failure(Record):
    """One expectation that some rows did not meet, or that could not be evaluated (`num_rows` 0)."""

    expectation: str
    column: str | None
    num_rows: int
    examples: tuple[str, ...] = ()


class DataReport(Record):
    """What was expected of one table, and what came of it. The URIs are paths of files on this machine."""

    suite: str
    num_expectations: int
    num_rows: int
    failures: tuple[Failure, ...]
    num_quarantined: int
    quarantine_uri: str | None
    docs_uri: str
    outcome: Outcome
    reason: str

    @property
    def quarantined_share(self) -> float:
        return self.num_quarantined / self.num_rows


def validate(
    frame: "pd.DataFrame",
    contract: Contract,
    docs_folder: Path,
    quarantine_folder: Path,
    *,
    max_quarantined_share: float,
) -> DataReport:
    """`validate_parts` of a table that is in memory."""
    return validate_parts(
        [frame], contract, docs_folder, quarantine_folder, max_quarantined_share=max_quarantined_share
    )


def validate_parts(
    frames: "Iterable[pd.DataFrame]",
    contract: Contract,
    docs_folder: Path,
    quarantine_folder: Path,
    *,
    max_quarantined_share: float,
) -> DataReport:
    """Check a table against its contract; write Data Docs and, where rows failed, a file of those rows.

    The table comes in parts, in order, of which one is held at a time; Data Docs have a page for each.
    `<quarantine_folder>/<name>.parquet` holds the failing rows with their position (ROW) and reason (REASON);
    the table itself is left as it is: its readers take values that were not allowed as unknown. Raises
    InputError for a fault of the whole table, with nothing written.
    """
    structure, found = Structure(contract), _Found()
    docs_folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{docs_folder.name}-", dir=docs_folder.parent) as scratch:
        unfinished = Path(scratch) / "docs"
        suite = Suite(contract, unfinished)
        for frame in frames:
            structure.see(frame)
            found.add(frame, suite.run(frame))
        structure.end()
        make_offline(unfinished)
        _publish(unfinished, docs_folder)
    return _report(
        contract, found, suite.num_expectations, docs_folder, quarantine_folder, max_quarantined_share
    )


def _report(
    contract: Contract,
    found: "_Found",
    num_expected: int,
    docs_folder: Path,
    quarantine_folder: Path,
    max_quarantined_share: float,
) -> DataReport:
    failures = tuple(found.failures.values())
    share = found.num_quarantined / found.num_rows
    outcome, reason = _decide(found.num_evaluated, num_expected, failures, share, max_quarantined_share)
    return DataReport(
        suite=contract.name,
        num_expectations=found.num_evaluated,
        num_rows=found.num_rows,
        failures=failures,
        num_quarantined=found.num_quarantined,
        quarantine_uri=_quarantine(found.aside, quarantine_folder / f"{contract.name}.parquet"),
        docs_uri=str(docs_folder / "index.html"),
        outcome=outcome,
        reason=reason,
    )


def together(
    reports: Sequence[DataReport],
    first_rows: Sequence[int],
    contract: Contract,
    docs_folder: Path,
    quarantine_folder: Path,
    max_quarantined_share: float,
) -> DataReport:
    """One report of a table that was validated in pieces, each by itself, from `first_rows` on.

    Data Docs of the pieces are copied below `docs_folder`, whose index leads to them.
    """
    import pandas as pd

    found = _Found()
    for report, first in zip(reports, first_rows, strict=True):
        found.add_report(report)
        if report.quarantine_uri is not None:
            rows = pd.read_parquet(report.quarantine_uri)
            found.aside.append(rows.assign(**{ROW: rows[ROW] + first}))
    shutil.rmtree(docs_folder, ignore_errors=True)
    docs_folder.mkdir(parents=True)
    for report, first in zip(reports, first_rows, strict=True):
        shutil.copytree(Path(report.docs_uri).parent, docs_folder / f"from_row_{first}")
    index_of_pieces(docs_folder)
    num_expected = len(expectations_of(contract))
    return _report(contract, found, num_expected, docs_folder, quarantine_folder, max_quarantined_share)


class _Found:
    """What came of the parts so far."""

    def __init__(self) -> None:
        self.num_rows = self.num_quarantined = 0
        self.num_evaluated = sys.maxsize
        self.failures: dict[tuple[str, str | None], Failure] = {}
        self.aside: list[pd.DataFrame] = []

    def add(self, frame: "pd.DataFrame", results: list[dict[str, Any]]) -> None:
        self.num_evaluated = min(self.num_evaluated, len(results))
        self._add_failures(_failure(result) for result in results if not result["success"])
        if reasons := _reasons_by_row(results):
            numbers = [self.num_rows + row for row in reasons]
            self.aside.append(
                frame.iloc[list(reasons)].assign(**{ROW: numbers, REASON: list(reasons.values())})
            )
        self.num_quarantined += len(reasons)
        self.num_rows += len(frame)

    def add_report(self, report: DataReport) -> None:
        self.num_evaluated = min(self.num_evaluated, report.num_expectations)
        self._add_failures(report.failures)
        self.num_quarantined += report.num_quarantined
        self.num_rows += report.num_rows

    def _add_failures(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            key = failure.expectation, failure.column
            self.failures[key] = _both(self.failures.get(key), failure)


def _both(first: Failure | None, later: Failure) -> Failure:
    """A failure that names no rows keeps its zero: it could not be evaluated in some part."""
    if first is None:
        return later
    is_evaluated = first.num_rows and later.num_rows
    num_rows = first.num_rows + later.num_rows if is_evaluated else 0
    examples = (first.examples + later.examples)[:NUM_EXAMPLES]
    return first.model_copy(update={"num_rows": num_rows, "examples": examples})


def _publish(unfinished: Path, docs_folder: Path) -> None:
    """Swap the finished pages in, so that nobody opens half of them."""
    if docs_folder.exists():
        shutil.rmtree(docs_folder)
    os.replace(unfinished, docs_folder)


def _failure(result: dict[str, Any]) -> Failure:
    return Failure(
        expectation=result["expectation"],
        column=result["column"],
        num_rows=len(result["rows"]),
        examples=result["examples"],
    )


def _reasons_by_row(results: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Position of each row that failed -> the expectations that it failed, in words."""
    reasons: dict[int, list[str]] = defaultdict(list)
    for result in results:
        words = result["expectation"].removeprefix("expect_column_values_to_").replace("_", " ")
        for row in result["rows"]:
            reasons[int(row)].append(f"{result['column']}: expected to {words}")
    return {row: "; ".join(reasons[row]) for row in sorted(reasons)}


def _decide(
    num_evaluated: int, num_expected: int, failures: Sequence[Failure], share: float, allowed: float
) -> tuple[Outcome, str]:
    """A suite that did not run proves nothing: Great Expectations calls an empty one a success."""
    if num_evaluated != num_expected:
        return Outcome.HOLD, f"{num_evaluated} of {num_expected} expectations were evaluated"
    unexplained = [failure.expectation for failure in failures if failure.num_rows == 0]
    if unexplained:
        return Outcome.HOLD, f"{', '.join(unexplained)} failed without naming rows"
    said = f"{share:.2%} of rows quarantined, {allowed:.2%} allowed, {num_evaluated} expectations"
    return (Outcome.PASS if share <= allowed else Outcome.FAIL), said


def _quarantine(aside: "list[pd.DataFrame]", path: Path) -> str | None:
    """Write the failing rows with position and reason; None, and no stale file, where there are none."""
    import pandas as pd

    if not aside:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished-{os.getpid()}")
    with unfinished.open("wb") as file:
        pd.concat(aside, ignore_index=True).to_parquet(file, index=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return str(path)
