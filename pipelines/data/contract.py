"""What a dataset file promises of its table, in the words of validation."""

from collections.abc import Collection

from pipelines.data.sources import source_place
from pipelines.data.spec import DatasetSpec, Kind
from validation.data import Column, Contract

TYPES = {"number": "number", "text": "text", "binary": "number", "time": "time"}


def contract_of(spec: DatasetSpec, name: str | None = None, may_lack: Collection[str] = ()) -> Contract:
    """The contract of the canonical table (or, under another `name`, of a part of it).

    Columns are required unless `nullable` lists them; `ranges` and `allowed` are the hand-written rules. In a
    regular series an instant occurs once per entity; in an event log many rows may share one. Columns that a
    batch `may_lack` are known later.
    """
    place = str(source_place(spec)) if spec.source.path else f"{spec.source.kind} ({spec.file or spec.name})"
    features = [_column(spec, column, kind, column in may_lack) for column, kind in spec.columns().items()]
    label = spec.target[0] if spec.task == "event" else spec.label
    return Contract(
        name=name or spec.name,
        source=place,
        columns=(Column(name="entity", type="text"), Column(name="time", type="time"), *features),
        key=("entity", "time") if spec.step else (),
        time="time",
        entity="entity",
        step_seconds=spec.step_seconds,
        targets=tuple(name for name in spec.target if name not in may_lack),
        positive_label=None if label in may_lack else label,
    )


def _column(spec: DatasetSpec, name: str, kind: Kind, may_lack: bool) -> Column:
    low, high = spec.ranges.get(name, (None, None))
    allowed = (0, 1) if kind == "binary" else spec.allowed.get(name, ())
    return Column.model_validate(
        {
            "name": name,
            "type": TYPES[kind],
            "nullable": name in spec.nullable or kind == "time" or may_lack,
            "minimum": low,
            "maximum": high,
            "allowed": allowed,
        }
    )
