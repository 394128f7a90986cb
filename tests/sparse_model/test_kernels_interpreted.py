"""The logic of the portable GPU kernels, run on the CPU by Triton's interpreter where Triton is installed."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


def _reason_to_skip() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed here"
    if _version("triton") <= (3, 6) and _version("numpy") >= (2, 4):
        return "the interpreter of Triton 3.6 fails under NumPy 2.4"
    return None


@pytest.mark.skipif(_reason_to_skip() is not None, reason=_reason_to_skip() or "")
def test_interpreted_kernels_compute_the_reference_and_its_gradients() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "tests.sparse_model.interpreted_kernels"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
