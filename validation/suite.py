"""A contract as a Great Expectations suite: one expectation per promise, run on parts of a table."""

# Great Expectations does not declare its public expectations as exports.
# pyright: reportPrivateImportUsage=false

import html
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from validation.data import Column, Contract

ROW = "quarantined_row"  # position in the validated table, from 0
NUM_EXAMPLES = 3  # of values that failed an expectation


class Suite:
    """A contract's expectations, run on one part after another, with Data Docs in the folder `unfinished`.

    The context is ephemeral because several processes on one file context corrupt it.
    """

    def __init__(self, contract: "Contract", unfinished: Path) -> None:
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
        expectations = expectations_of(contract)
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


def expectations_of(contract: "Contract") -> list[Any]:
    """One expectation per promise; names and values as they are shown (see _escaped)."""
    import great_expectations.expectations as gxe

    contract = _escaped_contract(contract)
    suite: list[Any] = [gxe.ExpectTableRowCountToBeBetween(min_value=1)]
    if len(contract.key) > 1:
        suite.append(gxe.ExpectCompoundColumnsToBeUnique(column_list=list(contract.key)))
    if len(contract.key) == 1:
        suite.append(gxe.ExpectColumnValuesToBeUnique(column=contract.key[0]))
    for column in contract.columns:
        suite.append(gxe.ExpectColumnToExist(column=column.name))
        suite.extend(_row_expectations(column))
    return suite


def _row_expectations(column: "Column") -> list[Any]:
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


def _escaped(frame: "pd.DataFrame", contract: "Contract") -> "pd.DataFrame":
    """The same for HTML: Great Expectations writes names and values into its pages as they are."""
    texts = [column.name for column in contract.columns if column.type == "text"]
    changed = {name: _escaped_text(frame, name) for name in texts}
    return frame.assign(**changed).rename(columns={name: html.escape(str(name)) for name in frame.columns})


def _escaped_contract(contract: "Contract") -> "Contract":
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


def _site(folder: Path) -> Any:
    return {
        "class_name": "SiteBuilder",
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder.resolve()),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _plain(result: Any) -> dict[str, Any]:
    """What is needed of one result; its own JSON methods would copy every unexpected value."""
    found = result.result or {}
    examples = (found.get("partial_unexpected_list") or ())[:NUM_EXAMPLES]
    return {
        "success": bool(result.success),
        "expectation": result.expectation_config.type,
        "column": _unescaped(result.expectation_config.kwargs.get("column")),
        "rows": [entry[ROW] for entry in found.get("unexpected_index_list") or ()],
        "examples": tuple(_unescaped(str(value)) for value in examples),
    }


def _unescaped(text: str | None) -> str | None:
    return None if text is None else html.unescape(text)
