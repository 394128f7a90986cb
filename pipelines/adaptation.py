"""A new site with little data: its series as if it had begun a few windows ago."""

import math
from datetime import datetime

import numpy as np

from pipelines.data.spec import Split
from pipelines.data.windows import FIXED_PARTS, Windows

_HELD_BACK = 0.2  # of the few windows: on them the best weights are chosen


def latest_windows(windows: Windows, num_windows: int) -> Windows:
    """The site's series from `num_windows` windows before its test part on; the test part stays as it is.

    A window is the dataset's stride of new steps. The last fifth of them is the validation part. Inputs are
    scaled and coded as before: a model of other sites reads them. Raises ValueError for more than one entity,
    and InputError where the series is too short.
    """
    if len(windows.offsets) != 2:
        raise ValueError(f"windows: a site is one entity, not {len(windows.offsets) - 1}")
    spec = windows.spec
    held_back = max(1, math.ceil(_HELD_BACK * num_windows))
    test = _first_row(windows, "test")
    first = test - spec.lookback - num_windows * spec.stride
    if first < 0:
        most = (test - spec.lookback) // spec.stride
        raise spec.refuse("split.test", f"only {most} windows lie before it, {num_windows} were asked for")
    is_later = ~np.isin(windows.parts, range(len(FIXED_PARTS)))  # months of a replay, or not used at all
    split = Split(
        validation=_time(windows, test - held_back * spec.stride),
        test=_time(windows, test),
        end=_time(windows, int(np.argmax(is_later))) if is_later.any() else None,
    )
    site = spec.model_copy(update={"split": split})
    return Windows(windows.snapshot, site, windows.preprocessing, windows.table[first:])


def _first_row(windows: Windows, part: str) -> int:
    return int(np.argmax(windows.parts == windows.part_names.index(part)))


def _time(windows: Windows, row: int) -> datetime:
    return windows.table["time"][row]
