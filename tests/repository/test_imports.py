"""Rules about imports that need a look at the source rather than at the import graph."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "pipelines" / "edge" / "runtime.py"


def imported_modules(source: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    nodes = list(ast.walk(ast.parse(source.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)}


def imported_roots(source: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(source)}


def shipped_with(source: Path) -> set[Path]:
    """The file and the neighbours in its folder that it imports, directly or not."""
    found, waiting = set(), [source]
    while waiting:
        path = waiting.pop()
        found.add(path)
        names = [module.removeprefix("pipelines.edge.") for module in imported_modules(path)]
        neighbours = {RUNTIME.with_name(f"{name}.py") for name in names if "." not in name}
        waiting += [neighbour for neighbour in neighbours - found if neighbour.is_file()]
    return found


def test_the_device_runtime_imports_nothing_a_device_lacks() -> None:
    """It and the neighbours it is shipped with: the standard library, numpy, onnxruntime and cryptography."""
    allowed = set(sys.stdlib_module_names) | {"numpy", "onnxruntime", "cryptography"}
    for path in shipped_with(RUNTIME):
        foreign = {m for m in imported_modules(path) if m.split(".")[0] not in allowed}
        assert {m for m in foreign if not m.startswith("pipelines.edge.")} == set(), path.name


@pytest.mark.parametrize("package", ["flows", "pipelines", "sparse_model", "validation"])
def test_no_package_loads_a_pickle(package: str) -> None:
    banned = {"pickle", "cloudpickle", "dill", "joblib"}
    guilty = [path.name for path in (ROOT / package).rglob("*.py") if imported_roots(path) & banned]
    assert guilty == []
