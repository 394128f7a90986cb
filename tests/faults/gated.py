"""The retraining flow with gates in it: it stops at some calls, each until a file lets it on.

DANKAI_TEST_GATES is a JSON file {"folder": FOLDER, "steps": {STEP: [MODULE:FUNCTION, NUMBER]}}. The call of
that number writes FOLDER/STEP.reached and waits for FOLDER/STEP.go; every call that goes on is a line in
FOLDER/STEP.calls.
"""

import functools
import importlib
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.retrain import retrain

__all__ = ["retrain"]


def install(gates: Path) -> None:
    """Put a gate before every call that is named."""
    asked = json.loads(gates.read_text())
    for step, (place, number) in asked["steps"].items():
        module, name = place.split(":")
        *path, attribute = name.split(".")
        owner = functools.reduce(getattr, path, importlib.import_module(module))
        gate = Path(asked["folder"]) / step
        setattr(owner, attribute, _gated(getattr(owner, attribute), gate, number))


def _gated(function: Callable[..., Any], gate: Path, number: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            gate.with_suffix(".reached").write_text(str(os.getpid()))
            while not gate.with_suffix(".go").exists():
                time.sleep(0.05)
        with gate.with_suffix(".calls").open("a") as noted:
            noted.write(f"{os.getpid()}\n")
        return function(*arguments, **named)

    return wrapped


if gates := os.environ.get("DANKAI_TEST_GATES"):
    install(Path(gates))
