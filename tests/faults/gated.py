"""The retraining flow with a gate in it: it stops at one call until a file lets it on.

DANKAI_TEST_GATE is FOLDER=MODULE:FUNCTION. The call writes FOLDER/reached and waits for FOLDER/go.
"""

import functools
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.retrain import retrain

__all__ = ["retrain"]


def install(gate: str) -> None:
    """Put the gate before every call of the function."""
    folder, place = gate.split("=")
    module, name = place.split(":")
    *path, attribute = name.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    setattr(owner, attribute, _gated(getattr(owner, attribute), Path(folder)))


def _gated(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        (folder / "reached").write_text(str(os.getpid()))
        while not (folder / "go").exists():
            time.sleep(0.05)
        return function(*arguments, **named)

    return wrapped


if gate := os.environ.get("DANKAI_TEST_GATE"):
    install(gate)
