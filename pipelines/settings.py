"""Where this installation keeps its things, read once from the environment."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from validation.errors import InputError

DATABASE = "DANKAI_DATABASE_URL"
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
"""Telemetry off, chatter down, a first start given time on a slow disk, and MLflow refusing to unpickle."""


@dataclass(frozen=True)
class Settings:
    """Folders, addresses and the thread count. Holds no secret, so it may be printed and logged."""

    home: Path
    """Everything dankai writes: database, artifacts, release log, bundles, summary.json."""
    data: Path
    """Root of the data files that datasets name."""
    tracking_uri: str
    """MLflow's store: an http(s) server or a database address."""
    prefect_api_url: str | None
    """A running Prefect server; None runs flows without one."""
    threads: int
    """Threads for numeric work."""
    dask: str | None = None
    """Who scores and validates in pieces: a Dask scheduler's address, or a number of processes to start."""
    database_url: str | None = field(default=None, repr=False)
    """PostgreSQL that holds the release log, perhaps with a password; None keeps it in the home folder."""

    @property
    def artifacts(self) -> Path:
        """Run artifacts, where no MLflow server keeps them."""
        return self.home / "artifacts"

    @property
    def release_log(self) -> Path:
        return self.home / "release_log.jsonl"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def steps(self) -> Path:
        """Records of finished steps (pipelines.steps)."""
        return self.home / "steps"


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `environ`; an empty variable counts as unset. Raises InputError."""
    home = _folder(environ, "DANKAI_HOME", ".dankai")
    return Settings(
        home=home,
        data=_folder(environ, "DANKAI_DATA", "../shared/data"),
        tracking_uri=_tracking_uri(environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home}/mlflow.db"),
        prefect_api_url=environ.get("PREFECT_API_URL") or None,
        threads=_threads(environ.get("DANKAI_THREADS") or str(os.cpu_count() or 1)),
        dask=_dask(environ.get("DANKAI_DASK") or None),
        database_url=_database_url(environ.get(DATABASE) or None),
    )


def quiet_environment(settings: Settings, environ: MutableMapping[str, str] = os.environ) -> None:
    """Give the stack its variables, leaving those already set.

    Call it before prefect, mlflow or great_expectations is imported: they read it as they load.
    """
    for name, value in QUIET.items():
        environ.setdefault(name, value)
    environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever was set: no pickle is ever loaded
    if settings.prefect_api_url is None:
        environ.pop("PREFECT_API_URL", None)  # Prefect would take an empty one for an address
    environ.setdefault("PREFECT_HOME", str(settings.home / "prefect"))


def _folder(environ: Mapping[str, str], name: str, default: str) -> Path:
    folder = Path(environ.get(name) or default).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{name}: {folder} is a file; name a folder")
    return folder


def _tracking_uri(value: str) -> str:
    schemes = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
    if "://" not in value or value.split("://")[0].split("+")[0] not in schemes:
        raise InputError(
            f"MLFLOW_TRACKING_URI: {value!r} is no address MLflow's tracking works with here; "
            "use http(s)://HOST:PORT, sqlite:///PATH or postgresql://..."
        )
    return value


def _database_url(value: str | None) -> str | None:
    if value is not None and not value.startswith(("postgresql://", "postgresql+psycopg2://")):
        scheme = value.split("://")[0] if "://" in value else "no scheme"
        raise InputError(
            f"{DATABASE}: {scheme!r} is not supported; use postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    return value


def _dask(value: str | None) -> str | None:
    if value is None or (value.isdecimal() and int(value) > 0) or value.startswith(("tcp://", "tls://")):
        return value
    raise InputError(
        f"DANKAI_DASK: {value!r} is no scheduler's address (tcp://HOST:8786) nor a number of workers"
    )


def _threads(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"DANKAI_THREADS: {value!r} is not a whole number of at least 1")
    return int(value)
