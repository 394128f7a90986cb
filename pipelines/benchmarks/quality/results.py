"""The results file: one measurement after another, safe against kills and several processes; its table."""

import hashlib
import json
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipelines.files import exclusive_lock, replace_file


class Key(NamedTuple):
    """What was measured."""

    task: str
    method: str
    num_steps: int
    density: float
    """Share of key blocks read; 1 is dense."""
    seed: int


def digest(settings: Any) -> str:
    """Short hash of everything that decides a measurement: a change measures anew."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def environment(device: torch.device) -> dict[str, str]:
    """Hardware, versions and date, so that a number can be compared with another."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


class Results:
    """Measurements in one JSON file, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any]:
        """`configurations` (by digest) and `measurements`; empty before the first one."""
        if not self.path.exists():
            return {"configurations": {}, "measurements": []}
        return json.loads(self.path.read_text())

    def has(self, keys: Iterable[Key], config: str) -> bool:
        """Whether all of these were measured under this configuration."""
        known = {(_key(row), row["config"]) for row in self.load()["measurements"]}
        return all((key, config) in known for key in keys)

    def add(self, key: Key, values: dict[str, Any], settings: Any, device: torch.device) -> None:
        """Put a measurement in the place of an earlier one of the same key."""
        row = {**key._asdict(), **values, "config": digest(settings), "environment": environment(device)}
        with exclusive_lock(self.path.with_suffix(".lock")):
            whole = self.load()
            rows = [old for old in whole["measurements"] if _key(old) != key]
            whole["measurements"] = sorted([*rows, row], key=_key)
            used = {each["config"] for each in whole["measurements"]}
            known = {**whole["configurations"], row["config"]: settings}
            whole["configurations"] = {name: known[name] for name in sorted(used)}
            replace_file(self.path, (json.dumps(whole, indent=1) + "\n").encode())


def _key(row: dict[str, Any]) -> Key:
    return Key(*(row[name] for name in Key._fields))


def table(measurements: list[dict[str, Any]]) -> str:
    """Mean accuracy of each cell with its smallest and largest seed, as Markdown."""
    densities = sorted({row["density"] for row in measurements}, reverse=True)
    cells: dict[tuple[str, int, str], dict[float, list[float]]] = {}
    for row in measurements:
        line = cells.setdefault((row["task"], row["num_steps"], row["method"]), {})
        line.setdefault(row["density"], []).append(row["accuracy"])
    head = ["task", "steps", "method", *("dense" if d == 1 else f"{d:.1%}" for d in densities)]
    lines = [head, ["---"] * len(head)]
    for (task, num_steps, method), line in sorted(cells.items()):
        lines.append([task, str(num_steps), method, *(_cell(line.get(d, [])) for d in densities)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(accuracies: list[float]) -> str:
    if not accuracies:
        return ""
    mean = sum(accuracies) / len(accuracies)
    return f"{mean:.3f} ({min(accuracies):.3f}-{max(accuracies):.3f}, n={len(accuracies)})"
