"""The same table with another future: everything that could not be known at a cutoff is different."""

import numpy as np
import polars as pl

from pipelines.data.windows import Windows

MINUTE_US = 60_000_000


def with_another_future(windows: Windows, cutoff: int, seed: int) -> Windows:
    """The same windows over a table in which everything not knowable at `cutoff` is different."""
    random = np.random.default_rng(seed)
    table, spec = windows.table, windows.spec
    instant = int(windows.time_us[cutoff - 1])
    after = np.arange(len(table)) >= cutoff
    known_at = {name: spec.late.known_at for name in spec.late.columns} if spec.late else {}
    if spec.target_known_at:
        known_at[spec.target[0]] = spec.target_known_at
    hidden = {name: still_hidden(table[at], instant) for name, at in known_at.items()}
    changed = {at: moved_later(table[at], instant, random) for at in known_at.values()}
    for name, kind in spec.columns().items():
        if kind != "time" and name not in spec.known_future:
            unknown = pl.Series(after | hidden.get(name, False))
            changed[name] = another(table[name], random).zip_with(unknown, table[name])
    return Windows(windows.snapshot, spec, windows.preprocessing, table.with_columns(**changed))


def still_hidden(known_at: pl.Series, instant_us: int) -> np.ndarray:
    """True where something becomes known after the instant, or never."""
    return (known_at.to_physical().fill_null(instant_us + 1) > instant_us).to_numpy()


def moved_later(known_at: pl.Series, instant_us: int, random: np.random.Generator) -> pl.Series:
    """Other instants after the given one for all that is not known by then."""
    later = pl.Series(instant_us + random.integers(1, 10**6, len(known_at)) * MINUTE_US)
    hidden = pl.Series(still_hidden(known_at, instant_us))
    return later.zip_with(hidden, known_at.to_physical()).cast(pl.Datetime("us"))


def another(values: pl.Series, random: np.random.Generator) -> pl.Series:
    """Other values of the same kind: 0/1 for outcomes, and 0/1 is a surprise for any other number too."""
    if values.dtype == pl.String:
        return values.unique().gather(random.integers(0, values.n_unique(), len(values)))
    return 1.0 - (values.fill_null(0.0) > 0.5).cast(pl.Float64)
