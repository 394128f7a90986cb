"""What MLflow takes: names of some letters, flat parameters, so many values in one call."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

BATCH = 1000  # metrics in one call, and results of one search
PARAM_BATCH = 100


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested parameters under dotted names."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def safe_name(name: str) -> str:
    """Letters, digits and _-./: and blanks are left, the rest becomes underscores."""
    return re.sub(r"[^\w\-./: ]", "_", name)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size`."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
