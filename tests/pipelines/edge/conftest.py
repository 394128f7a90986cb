"""The compiled encoder, built once for these tests where it is not built already."""

import shutil
import subprocess
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from pipelines.edge.compiled import NotCompiled, library_file, load_library

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the package builds it; the test is skipped where there is no compiler or no AVX2."""
    try:
        path = library_file()
    except NotCompiled:
        path = _build(tmp_path_factory.mktemp("kernel"))
    try:
        load_library(path)
    except NotCompiled as why:
        pytest.skip(str(why))
    return path


def _build(folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, and the compiled encoder was not built")
    [extension] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    path = folder / f"_encoder{EXTENSION_SUFFIXES[0]}"
    sources = [str(ROOT / source) for source in extension["sources"]]
    command = [compiler, "-shared", "-fPIC", *extension["extra-compile-args"], "-O1", "-Werror", *sources]
    subprocess.run([*command, "-lm", "-o", str(path)], check=True)
    return path
