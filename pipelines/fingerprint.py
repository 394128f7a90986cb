"""What a result was made with: code, packages, machine."""

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from validation.record import Record

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sparse_model", "validation", "pipelines", "flows")
NAMED = ("mlflow", "prefect", "great_expectations", "lightning", "onnxruntime", "polars")
"""Packages whose versions people ask for by name; `packages_digest` covers all."""


class Environment(Record):
    """Code, packages and machine of one run; what the machine does not have is empty."""

    code: str
    git_commit: str
    lock: str
    packages: str
    python: str
    torch: str
    cuda: str
    platform: str
    cpu: str
    num_cpus: int
    gpu: str
    mlflow: str = ""
    prefect: str = ""
    great_expectations: str = ""
    lightning: str = ""
    onnxruntime: str = ""
    polars: str = ""


@cache
def environment() -> Environment:
    """Fingerprint of this process."""
    import torch

    return Environment(
        code=code_digest(),
        git_commit=git_commit(),
        lock=lock_digest(),
        packages=packages_digest(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda or "",
        platform=platform.platform(),
        cpu=_cpu_name(),
        num_cpus=os.cpu_count() or 1,
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        **{name: _version(name) for name in NAMED},
    )


def machine() -> dict[str, str | int]:
    """What timings depend on beside the program: they say nothing about another machine."""
    here = environment()
    return {"cpu": here.cpu, "num_cpus": here.num_cpus, "gpu": here.gpu}


@cache
def code_digest() -> str:
    """SHA-256 over the product's own source files (paths and bytes), tests not included."""
    digest = hashlib.sha256()
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*.[pch]*"))
    for path in sorted(path for path in sources if path.suffix in (".py", ".c", ".h")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@cache
def git_commit() -> str:
    """Commit of the checkout, '+changes' where tracked files differ from it, '' outside one."""
    commit = _git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and _git("status", "--porcelain", "-uno") else commit


@cache
def lock_digest() -> str:
    """SHA-256 over the requirement files of the checkout, '' where there are none."""
    files = sorted(ROOT.glob("requirements*"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest() if files else ""


@cache
def packages_digest() -> str:
    """SHA-256 over the names and versions that are really installed, whatever the lock says."""
    from importlib.metadata import distributions

    installed = sorted(f"{package.name}=={package.version}" for package in distributions())
    return hashlib.sha256("\n".join(installed).encode()).hexdigest()


def process_tags() -> dict[str, str]:
    """Which process this is, so that a later one can tell whether it still lives."""
    import psutil

    process = psutil.Process()
    return {
        "process.host": socket.gethostname(),
        "process.id": str(process.pid),
        "process.started": f"{process.create_time():.2f}",
    }


def process_is_alive(tags: Mapping[str, str]) -> bool:
    """Whether the process of these `process_tags`, of this host, still runs."""
    import psutil

    try:
        started = psutil.Process(int(tags["process.id"])).create_time()
    except psutil.NoSuchProcess:
        return False
    # A process id is used again after a while; its starting time is not.
    return f"{started:.2f}" == tags["process.started"]


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
