"""What a table must look like, and the check of it: refuse a broken table, set bad rows aside, report.

Faults of the whole table (a column that is not there, times out of order) raise InputError before anything is
written. Faults of single rows are found by a Great Expectations checkpoint and quarantined with their reason.
"""

# Great Expectations does not declare its public expectations as exports.
# pyright: reportPrivateImportUsage=false

import html
import logging
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from validation.data_docs import make_offline
from validation.gates import Outcome
from validation.record import Record
from validation.structure import Structure

if TYPE_CHECKING:
    import pandas as pd

ROW = "quarantined_row"  # position in the validated table, from 0
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
    failures = tuple(found.failures.values())
    outcome, reason = _decide(
        found.num_evaluated,
        suite.num_expectations,
        failures,
        found.num_quarantined / found.num_rows,
        max_quarantined_share,
    )
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


class _Found:
    """What came of the parts so far."""

    def __init__(self) -> None:
        self.num_rows = self.num_quarantined = 0
        self.num_evaluated = sys.maxsize
        self.failures: dict[tuple[str, str | None], Failure] = {}
        self.aside: list[pd.DataFrame] = []

    def add(self, frame: "pd.DataFrame", results: list[dict[str, Any]]) -> None:
        self.num_evaluated = min(self.num_evaluated, len(results))
        for failure in (_failure(result) for result in results if not result["success"]):
            key = failure.expectation, failure.column
            self.failures[key] = _together(self.failures.get(key), failure)
        if reasons := _reasons_by_row(results):
            numbers = [self.num_rows + row for row in reasons]
            self.aside.append(
                frame.iloc[list(reasons)].assign(**{ROW: numbers, REASON: list(reasons.values())})
            )
        self.num_quarantined += len(reasons)
        self.num_rows += len(frame)


def _together(first: Failure | None, later: Failure) -> Failure:
    """A failure that names no rows keeps its zero: it could not be evaluated in some part."""
    if first is None:
        return later
    is_evaluated = first.num_rows and later.num_rows
    num_rows = first.num_rows + later.num_rows if is_evaluated else 0
    return first.model_copy(update={"num_rows": num_rows})


def _escaped(frame: "pd.DataFrame", contract: Contract) -> "pd.DataFrame":
    """The same for HTML: Great Expectations writes names and values into its pages as they are."""
    texts = [column.name for column in contract.columns if column.type == "text"]
    changed = {name: _escaped_text(frame, name) for name in texts}
    return frame.assign(**changed).rename(columns={name: html.escape(str(name)) for name in frame.columns})


def _escaped_contract(contract: Contract) -> Contract:
    columns = [
        column.model_copy(
            update={
                "name": html.escape(column.name),
                "allowed": tuple(html.escape(v) if isinstance(v, str) else v for v in column.allowed),
            }
        )
        for column in contract.columns
    ]
    key = tuple(html.escape(name) for name in contract.key)
    return contract.model_copy(update={"columns": tuple(columns), "key": key})


def _escaped_text(frame: "pd.DataFrame", name: str) -> Any:
    """Only the values that need it are touched, and most columns have none."""
    values = frame[name]
    risky = {value: html.escape(value) for value in values.dropna().unique() if html.escape(value) != value}
    return values.astype(object).replace(risky) if risky else values


def _expectations(contract: Contract) -> list[Any]:
    """The suite: one expectation per promise."""
    import great_expectations.expectations as gxe

    suite: list[Any] = [gxe.ExpectTableRowCountToBeBetween(min_value=1)]
    if len(contract.key) > 1:
        suite.append(gxe.ExpectCompoundColumnsToBeUnique(column_list=list(contract.key)))
    if len(contract.key) == 1:
        suite.append(gxe.ExpectColumnValuesToBeUnique(column=contract.key[0]))
    for column in contract.columns:
        suite.append(gxe.ExpectColumnToExist(column=column.name))
        suite.extend(_row_expectations(column))
    return suite


def _row_expectations(column: Column) -> list[Any]:
    import great_expectations.expectations as gxe

    suite: list[Any] = []
    if not column.nullable:
        suite.append(gxe.ExpectColumnValuesToNotBeNull(column=column.name))
    if column.type == "number":  # without bounds of its own, a number still has to be finite
        lowest = -sys.float_info.max if column.minimum is None else column.minimum
        highest = sys.float_info.max if column.maximum is None else column.maximum
        suite.append(
            gxe.ExpectColumnValuesToBeBetween(column=column.name, min_value=lowest, max_value=highest)
        )
    if column.allowed:
        suite.append(gxe.ExpectColumnValuesToBeInSet(column=column.name, value_set=list(column.allowed)))
    return suite


class Suite:
    """A contract's expectations, run on one part after another, with Data Docs in the folder `unfinished`.

    The context is ephemeral because several processes on one file context corrupt it.
    """

    def __init__(self, contract: Contract, unfinished: Path) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
        logging.getLogger("great_expectations").setLevel(
            logging.WARNING
        )  # it announces its temporary folders
        self.contract, name = contract, contract.name
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        context.add_data_docs_site(name, _site(unfinished))
        batch = (
            context.data_sources.add_pandas(name)
            .add_dataframe_asset(name)
            .add_batch_definition_whole_dataframe(name)
        )
        expectations = _expectations(_escaped_contract(contract))
        self.num_expectations = len(expectations)
        suite = context.suites.add(gx.ExpectationSuite(name, expectations=expectations))
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        self._checkpoint = self._checkpoint_of(context, context.validation_definitions.add(definition))

    def _checkpoint_of(self, context: Any, definition: Any) -> Any:
        import great_expectations as gx
        from great_expectations.checkpoint.actions import UpdateDataDocsAction

        name = self.contract.name
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name=name, site_names=[name])],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [ROW]},
        )
        return context.checkpoints.add(checkpoint)

    def run(self, frame: "pd.DataFrame") -> list[dict[str, Any]]:
        """The result of every expectation on one part; its rows are numbered from 0."""
        shown = _escaped(frame, self.contract).assign(**{ROW: range(len(frame))})
        outcome = self._checkpoint.run(batch_parameters={"dataframe": shown})
        (validation,) = outcome.run_results.values()
        return [_plain(result) for result in validation.results]


def _site(folder: Path) -> Any:
    return {
        "class_name": "SiteBuilder",
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.resolve()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _publish(unfinished: Path, docs_folder: Path) -> None:
    """Swap the finished pages in, so that nobody opens half of them."""
    if docs_folder.exists():
        shutil.rmtree(docs_folder)
    os.replace(unfinished, docs_folder)


def _plain(result: Any) -> dict[str, Any]:
    """What is needed of one result; its own JSON methods would copy every unexpected value."""
    found = result.result or {}
    return {
        "success": bool(result.success),
        "expectation": result.expectation_config.type,
        "column": _unescaped(result.expectation_config.kwargs.get("column")),
        "rows": [entry[ROW] for entry in found.get("unexpected_index_list") or ()],
        "examples": tuple(_unescaped(str(v)) for v in (found.get("partial_unexpected_list") or ())[:3]),
    }


def _unescaped(text: str | None) -> str | None:
    return None if text is None else html.unescape(text)


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
