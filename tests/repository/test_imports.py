"""Rules about imports that need a look at the source rather than at the import graph."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "pipelines" / "edge" / "runtime.py"


def imported_roots(source: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(source.read_text())))
    plain = {
        alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    froms = {(node.module or ".").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    return plain | froms


def test_the_device_runtime_imports_nothing_a_device_lacks() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "onnxruntime", "cryptography"}
    assert imported_roots(RUNTIME) - allowed == set()


@pytest.mark.parametrize("package", ["flows", "pipelines", "sparse_model", "validation"])
def test_no_package_loads_a_pickle(package: str) -> None:
    banned = {"pickle", "cloudpickle", "dill", "joblib"}
    guilty = [path.name for path in (ROOT / package).rglob("*.py") if imported_roots(path) & banned]
    assert guilty == []
