"""A table in a Parquet file, a bounded number of rows at a time; and arrays made of it that need not fit in
memory."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl

CHUNK_ROWS = 1 << 20
"""Rows looked at together, whatever the file's own row groups are."""
WHOLE_ROWS = 1 << 22
"""Rows up to which a table and its arrays are held in memory."""


def chunks(path: Path | str, columns: Sequence[str] | None = None) -> "Iterator[pl.DataFrame]":
    """The table's rows in order, CHUNK_ROWS at a time; only the row groups that hold them are read."""
    import polars as pl

    table = pl.scan_parquet(path)
    if columns is not None:
        table = table.select(columns)
    num_rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    return (table.slice(first, CHUNK_ROWS).collect() for first in range(0, num_rows, CHUNK_ROWS))


class Growing:
    """An array that is given piece by piece: kept in memory, or in a file without a name below `folder`."""

    def __init__(self, folder: Path | None) -> None:
        self.file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it stays open
        self.pieces: list[np.ndarray] = []
        self.num_rows = 0

    def add(self, piece: np.ndarray) -> None:
        self.num_rows += len(piece)
        if self.file is None:
            self.pieces.append(piece)
        else:
            self.pieces = [piece[:0]]  # dtype and shape of a row
            np.ascontiguousarray(piece).tofile(self.file)

    def array(self) -> np.ndarray:
        """All pieces, one under the other; read only where it lies in a file."""
        if self.file is None:
            return self.pieces[0] if len(self.pieces) == 1 else np.concatenate(self.pieces)
        (kind,) = self.pieces
        shape = self.num_rows, *kind.shape[1:]
        if 0 in shape:  # a file of nothing cannot be mapped
            return np.zeros(shape, kind.dtype)
        self.file.flush()
        return np.memmap(self.file, kind.dtype, "r", shape=shape)


def content_hash(path: Path) -> str:
    """SHA-256 (hex) of the table: names, types and values in order, however the file lays them out."""
    import polars as pl

    schema = pl.scan_parquet(path).collect_schema()
    hashes = {name: _ColumnHash() for name in schema}
    for chunk in chunks(path):
        for name, column in hashes.items():
            column.add(chunk[name])
    whole = hashlib.sha256()
    for name, column in hashes.items():
        whole.update(repr((name, str(schema[name]), column.digests())).encode())
    return whole.hexdigest()


class _ColumnHash:
    """Of one column: which rows have a value, the values, and of texts their lengths."""

    def __init__(self) -> None:
        self.present, self.values, self.lengths = (hashlib.sha256() for _ in range(3))

    def add(self, values: "pl.Series") -> None:
        import polars as pl

        self.present.update(np.ascontiguousarray(values.is_not_null().to_numpy()).data)
        if values.dtype == pl.String:
            texts = values.fill_null("")
            self.lengths.update(np.ascontiguousarray(texts.str.len_bytes().to_numpy()).data)
            self.values.update(texts.str.join("").item().encode())
            return
        numbers = values.to_physical().fill_null(0).to_numpy()
        if numbers.dtype.kind == "f":
            numbers = np.where(np.isnan(numbers), np.nan, numbers)  # one NaN of the many there are
        self.values.update(np.ascontiguousarray(numbers).data)

    def digests(self) -> tuple[str, ...]:
        return self.present.hexdigest(), self.values.hexdigest(), self.lengths.hexdigest()
