"""The compiled encoders, built once for these tests where they are not built already."""

import platform
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from pipelines.edge import compiled
from pipelines.edge.compiled import LIBRARIES, NotCompiled, library_file, load_library

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session", params=LIBRARIES)
def compiled_name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine as the package builds it; skipped without a compiler, or what it needs of a processor."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            library_file(request.param)
        except NotCompiled:
            patch.setattr(compiled, "FOLDER", _built(request.param, tmp_path_factory.mktemp("kernel")))
        try:
            load_library(request.param)
        except NotCompiled as why:
            pytest.skip(str(why))
        yield request.param


def _built(name: str, folder: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, and the compiled encoder was not built")
    if "avx512" in name and not (
        platform.machine() == "x86_64" and "avx512_vnni" in Path("/proc/cpuinfo").read_text()
    ):
        pytest.skip("this processor lacks AVX-512 or its VNNI, and compiled-avx512 was not built")
    extensions = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    [extension] = [each for each in extensions if each["name"].endswith(f".{LIBRARIES[name]}")]
    path = folder / f"{LIBRARIES[name]}{EXTENSION_SUFFIXES[0]}"
    sources = [str(ROOT / source) for source in extension["sources"]]
    command = [compiler, "-shared", "-fPIC", *extension["extra-compile-args"], "-O1", "-Werror", *sources]
    subprocess.run([*command, "-lm", "-o", str(path)], check=True)
    return folder
