"""What the allocator is told is what it does."""

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys, torch
from sparse_model.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets the allocator of glibc")
def test_tensors_reuse_the_memory_that_others_gave_back() -> None:
    faults = {}
    for how in ("keep", "return"):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True
        )
        faults[how] = int(done.stdout)
    assert faults["return"] > 20 * 32  # 64 MiB are 32 pages of 2 MiB, or 16,384 of 4 KiB
    assert faults["keep"] < faults["return"] / 5
