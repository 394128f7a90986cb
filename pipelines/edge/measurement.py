"""What the runtime costs on this machine, measured in a process that holds nothing else."""

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pipelines.clock import now
from pipelines.fingerprint import ROOT
from pipelines.signing import public_pem, without_secrets
from validation.errors import InputError
from validation.record import Record


class EdgeTimings(Record):
    """Golden input scored again and again, batch size 1."""

    engine: str
    """What answered (pipelines.edge.runtime)."""
    num_steps: int
    threads: int
    load_ms: float
    """Verify, load, answer the golden input once."""
    latency_ms: tuple[float, ...]
    latency_p50_ms: float
    latency_p99_ms: float
    peak_memory_bytes: int
    """Resident peak of the whole process: interpreter, runtime, model, inference."""
    failure: str = ""
    """The process's last word where it did not load or answer; then nothing was timed."""
    measured_at: str = ""

    @classmethod
    def failed(cls, threads: int, failure: str) -> "EdgeTimings":
        """A process of which nothing could be measured."""
        nothing = {"load_ms": math.nan, "latency_p50_ms": math.nan, "latency_p99_ms": math.nan}
        return cls(
            engine="",
            num_steps=0,
            threads=threads,
            latency_ms=(),
            peak_memory_bytes=0,
            failure=failure,
            measured_at=now(),
            **nothing,
        )


def measure(folder: Path, key: Ed25519PublicKey, repeats: int, threads: int = 1) -> EdgeTimings:
    """Load and time a bundle in a fresh process. Raises InputError with its last word where it fails."""
    started = now()
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(public_pem(key))
        file.flush()
        command = [sys.executable, "-m", "pipelines.edge.runtime", str(folder.resolve()), file.name]
        done = subprocess.run(
            [*command, str(repeats), str(threads)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=without_secrets(os.environ),
            check=False,
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise InputError(f"{folder}: the edge runtime failed ({last[0]}); build the bundle again")
    return EdgeTimings.model_validate_json(done.stdout).model_copy(update={"measured_at": started})
