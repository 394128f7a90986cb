"""What has to be right around dankai, checked in under two seconds; each finding names its fix."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata, util
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from pipelines.addresses import request_to, without_password
from pipelines.settings import DATABASE, QUIET, Settings, load_settings
from validation.errors import InputError

State = Literal["ok", "warn", "fail"]
GIB = 2**30
TIMEOUT_S = 1.0
PORTS = {4200: ("Prefect", "api/health", "--prefect-port"), 5000: ("MLflow", "health", "--mlflow-port")}
_TELEMETRY = (
    "DO_NOT_TRACK",
    "MLFLOW_DISABLE_TELEMETRY",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
    "GX_ANALYTICS_ENABLED",
)
_WORKING_EXTRAS = ("data", "train", "validate", "flow", "track")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    said: str
    fix: str = ""


Check = Callable[[Settings], Iterator[Finding]]


def examine(environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Every check, side by side: one that waits for a server holds up nobody."""
    try:
        settings = load_settings(environ)
    except InputError as error:
        return [*packages(), Finding("settings", "fail", str(error), "correct or unset that variable")]
    checks: tuple[Check, ...] = (
        *(python, lambda _: packages(), accelerator, home, disk, data, keys),
        *(database, prefect, mlflow, ports, telemetry, clock),
    )
    with ThreadPoolExecutor(len(checks)) as pool:
        return [
            finding for found in pool.map(lambda check: list(check(settings)), checks) for finding in found
        ]


def python(_: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Finding(
        "python",
        "ok" if fine else "fail",
        version,
        "" if fine else "use Python 3.11 or 3.12: make clean demo",
    )


def packages() -> Iterator[Finding]:
    """What is installed against the pins of this dankai."""
    try:
        required = metadata.requires("dankai") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "fail", "dankai itself is not installed", "make test (or: pip install -e '.[all]')"
        )
        return
    wrong, missing = [], []
    for line in required:
        pinned = re.match(r"([\w.-]+)(?:\[.*\])?==([\w.]+)(?:.*extra == ['\"](\S+)['\"])?", line)
        if pinned is None or (pinned[3] and pinned[3] not in _WORKING_EXTRAS):
            continue
        try:
            found = metadata.version(pinned[1]).split("+")[0]
        except metadata.PackageNotFoundError:
            missing.append(pinned[1])
            continue
        if found != pinned[2]:
            wrong.append(f"{pinned[1]} {found} (pinned {pinned[2]})")
    if missing:
        yield Finding(
            "packages", "fail", f"missing: {', '.join(missing)}", "make test installs what the lock says"
        )
    if wrong:
        yield Finding("packages", "warn", ", ".join(wrong), "make test installs what the lock says")
    if not (missing or wrong):
        yield Finding("packages", "ok", f"dankai {metadata.version('dankai')}, all as pinned")


def accelerator(settings: Settings) -> Iterator[Finding]:
    """A GPU that PyTorch can use; torch takes seconds to import, so its build is read from its file."""
    cards, build = _cards(), _cuda_build()
    if cards and build is None:
        fix = "install the CUDA build: pip install --force-reinstall torch (the pin of pyproject.toml)"
        yield Finding("gpu", "warn", f"{cards}, and PyTorch is built without CUDA", fix)
    elif cards:
        yield Finding("gpu", "ok", f"{cards}, PyTorch for CUDA {build}")
    else:
        yield Finding("gpu", "ok", "none; the CPU does")
    cores = os.cpu_count() or 1
    too_many = settings.threads > cores
    fix = f"DANKAI_THREADS={cores}" if too_many else ""
    yield Finding("threads", "warn" if too_many else "ok", f"{settings.threads} of {cores} cores", fix)


def home(settings: Settings) -> Iterator[Finding]:
    """Where everything is written; looked at without being made."""
    place = _existing(settings.home)
    try:
        with TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        yield Finding(
            "home",
            "fail",
            f"{settings.home}: {error.strerror}",
            "let this account write there, or set DANKAI_HOME",
        )
        return
    is_new = "" if settings.home.exists() else " (made on first use)"
    yield Finding("home", "ok", f"{settings.home}{is_new}, writable")


def disk(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(_existing(settings.home)).free / GIB
    state: State = "ok" if free >= 5 else "warn" if free >= 1 else "fail"
    yield Finding(
        "disk",
        state,
        f"{free:.1f} GiB free",
        "" if state == "ok" else "make room: a rollout writes up to a few GiB",
    )


def data(settings: Settings) -> Iterator[Finding]:
    there = settings.data.is_dir()
    fix = (
        "" if there else "set DANKAI_DATA to the folder that the shipped datasets are in; the demo needs none"
    )
    yield Finding(
        "data", "ok" if there else "warn", f"{settings.data}{'' if there else ': no such folder'}", fix
    )


def keys(settings: Settings) -> Iterator[Finding]:
    """The signing key and whom this installation trusts; nothing is made by looking."""
    from pipelines.signing import VARIABLE, load_key, trusted_keys

    try:
        if not os.environ.get(VARIABLE) and not (settings.keys / "signing.key").exists():
            yield Finding("keys", "ok", "none yet: made on first use, readable by this account alone")
            return
        if settings.keys.is_dir():
            load_key(settings.keys)
        known = len(trusted_keys(settings.keys))
    except InputError as error:
        yield Finding("keys", "fail", str(error), "as said")
        return
    place = VARIABLE if os.environ.get(VARIABLE) else f"{settings.keys}/signing.key"
    yield Finding("keys", "ok", f"signs with {place}, trusts {known}")


def database(settings: Settings) -> Iterator[Finding]:
    """The release log's, and that the log holds."""
    from pipelines.release_log import ReleaseLog

    if settings.database_url:
        import psycopg2

        try:
            psycopg2.connect(settings.database_url, connect_timeout=1).close()
        except psycopg2.Error as error:
            reason = without_password(str(error).strip().splitlines()[0])
            yield Finding(
                "database", "fail", f"{DATABASE}: {reason}", "start PostgreSQL, or correct the address"
            )
            return
    try:
        entries = len(ReleaseLog.of(settings).entries()) if settings.home.is_dir() else 0
    except (InputError, OSError) as error:
        yield Finding("release log", "fail", str(error), "dankai audit verify says more; restore a backup")
        return
    place = "PostgreSQL" if settings.database_url else str(settings.release_log)
    yield Finding("release log", "ok", f"{place}, {entries} entries, chain and signatures hold")


def prefect(settings: Settings) -> Iterator[Finding]:
    api = settings.prefect_api_url
    if api is None:
        yield Finding("prefect", "ok", "no server is set: flows run by themselves, nothing is scheduled")
        return
    problem = _unhealthy(f"{api.rstrip('/')}/health")
    fix = "start it (dankai up), or correct or unset PREFECT_API_URL"
    yield _answered("prefect", without_password(api), problem, fix)


def mlflow(settings: Settings) -> Iterator[Finding]:
    uri = settings.tracking_uri
    if uri.startswith("http"):
        fix = "start it (dankai up), or correct or unset MLFLOW_TRACKING_URI"
        yield _answered("mlflow", without_password(uri), _unhealthy(f"{uri.rstrip('/')}/health"), fix)
        return
    place = Path(uri.removeprefix("sqlite:///"))
    is_ours = uri.startswith("sqlite:///") and place.exists()
    writable = not is_ours or os.access(place, os.W_OK)
    said = without_password(uri) + ("" if is_ours else " (made on first use)")
    yield Finding(
        "mlflow", "ok" if writable else "fail", said, "" if writable else f"let this account write {place}"
    )


def ports(_: Settings) -> Iterator[Finding]:
    """The two that `dankai up` listens at by default."""
    for port, (name, path, option) in PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(TIMEOUT_S)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            yield Finding(f"port {port}", "ok", f"free for {name}")
        elif _unhealthy(f"http://127.0.0.1:{port}/{path}"):
            fix = f"stop it, or: dankai up {option} NUMBER"
            yield Finding(f"port {port}", "warn", f"taken by something that is no {name}", fix)
        else:
            yield Finding(f"port {port}", "ok", f"{name} answers")


def telemetry(_: Settings) -> Iterator[Finding]:
    on = [name for name in _TELEMETRY if os.environ.get(name, QUIET[name]).lower() != QUIET[name]]
    fix = "; ".join(f"export {name}={QUIET[name]}" for name in on)
    said = f"on by {', '.join(on)}" if on else "off, of MLflow, Prefect and Great Expectations"
    yield Finding("telemetry", "warn" if on else "ok", said, fix)


def clock(_: Settings) -> Iterator[Finding]:
    """Schedules and logs are in UTC; an unset clock breaks certificates and expiry dates."""
    here = datetime.now().astimezone()
    said = f"{here:%Y-%m-%d %H:%M} {here.tzname()} ({here:%z}); logs and schedules are in UTC"
    zone = os.environ.get("TZ", "").lstrip(":")
    if zone and "/" in zone and not (Path("/usr/share/zoneinfo") / zone).exists():
        yield Finding(
            "time zone", "warn", f"TZ={zone} is no zone known here; {said}", "correct TZ, or install tzdata"
        )
    elif time.time() < (Path(__file__).stat().st_mtime - 86400):
        yield Finding(
            "time zone", "fail", f"the clock is behind this program: {said}", "set the clock (timedatectl)"
        )
    else:
        yield Finding("time zone", "ok", said)


def _cards() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=1.5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(told.stdout.strip().splitlines()) if told.returncode == 0 else ""


def _cuda_build() -> str | None:
    found = util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    stated = re.search(
        r"^cuda.*= '([\d.]+)'", Path(found.origin).with_name("version.py").read_text(), re.MULTILINE
    )
    return stated[1] if stated else None


def _unhealthy(address: str) -> str:
    """Why a server is not well, "" where it is."""
    try:
        with urllib.request.urlopen(request_to(address), timeout=TIMEOUT_S) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _answered(name: str, address: str, problem: str, fix: str) -> Finding:
    if problem:
        return Finding(name, "fail", f"{address} does not answer ({problem})", fix)
    return Finding(name, "ok", f"{address} answers")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.is_dir())
