"""What `dankai up` runs, and how: Prefect's server, MLflow's server, the deployments, a worker."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.databases import databases_of
from flows.deployments import HEARTBEAT_S
from flows.supervisor import Service, Supervisor, keep_last
from pipelines.settings import Settings
from pipelines.signing import without_secrets
from validation.errors import InputError

_PROGRAMS = Path(sys.executable).parent
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Plan:
    """The parts that were asked for, in the order in which they start."""

    prefect: Service | None
    mlflow: Service | None
    worker: Service | None
    deployments: Path
    logs: Path

    def start(self, supervisor: Supervisor) -> None:
        """Start them, each once the one before answers. Raises InputError where one does not."""
        for log in self.logs.glob("*.log"):
            keep_last(log)
        for name, server in (("prefect", self.prefect), ("mlflow", self.mlflow)):
            if server is not None:
                self._run(supervisor, f"{name}-database", ["flows.databases", name], os.environ)
                supervisor.start(server)
        if self.worker is not None:
            command = ["flows.deployments", str(self.deployments)]
            self._run(supervisor, "deployments", command, self.worker.environ)
            supervisor.start(self.worker)

    def _run(
        self, supervisor: Supervisor, name: str, module: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        supervisor.run(name, [sys.executable, "-m", *module], environ, self.logs / f"{name}.log")


def plan_of(
    settings: Settings,
    parts: Sequence[str],
    host: str,
    prefect_port: int,
    mlflow_port: int,
    deployments: Path,
    queues: Sequence[str],
) -> Plan:
    """Raises InputError where a port is taken, a file is missing, or a worker would not find its servers."""
    if "worker" in parts and not deployments.is_file():
        raise InputError(f"{deployments}: no such file; name one with --deployments")
    logs, databases = settings.home / "logs", databases_of(settings)
    prefect = mlflow = worker = None
    if "prefect" in parts:
        prefect = prefect_server(settings, databases.prefect, host, prefect_port, logs)
    if "mlflow" in parts:
        mlflow = mlflow_server(settings, databases.mlflow, host, mlflow_port, logs)
    if "worker" in parts:
        api = f"{prefect.address}/api" if prefect else settings.prefect_api_url
        tracking = mlflow.address if mlflow else os.environ.get("MLFLOW_TRACKING_URI")
        worker = worker_of(settings, api, tracking, queues, logs)
    return Plan(prefect, mlflow, worker, deployments.absolute(), logs)


def prefect_server(settings: Settings, database: str, host: str, port: int, logs: Path) -> Service:
    _require_free(host, port, "--prefect-port")
    environ = {
        **without_secrets(os.environ),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        # In memory, as by default, a restart would forget whose a slot is: it would stay taken for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # Its pages ask the server that they came from, at whatever port and under whatever name that is.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # after 7 and 90 days
    }
    environ.pop("PREFECT_API_URL", None)
    command = [str(_PROGRAMS / "prefect"), "server", "start", "--host", host, "--port", str(port)]
    address = f"http://{_reach(host)}:{port}"
    return Service("Prefect", command, environ, f"{address}/api/health", logs / "prefect.log", address)


def mlflow_server(settings: Settings, database: str, host: str, port: int, logs: Path) -> Service:
    _require_free(host, port, "--mlflow-port")
    environ = {
        **without_secrets(os.environ),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": os.environ.get("MLFLOW_ARTIFACTS_DESTINATION")
        or str(settings.artifacts),
    }
    if database.startswith("sqlite"):
        # A connection that was opened while the disk was read-only stays so: a pool would keep it for ever.
        environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    environ.pop("MLFLOW_TRACKING_URI", None)
    command = [str(_PROGRAMS / "mlflow"), "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--serve-artifacts", "--uvicorn-opts", "--log-level warning"]
    address = f"http://{_reach(host)}:{port}"
    return Service("MLflow", command, environ, f"{address}/health", logs / "mlflow.log", address)


def worker_of(
    settings: Settings, api: str | None, tracking: str | None, queues: Sequence[str], logs: Path
) -> Service:
    """Decides in our name, so it alone gets the signing key."""
    if api is None:
        raise InputError("PREFECT_API_URL: not set; name the Prefect server that the worker works for")
    if tracking is None:
        raise InputError("MLFLOW_TRACKING_URI: not set; name the MLflow server that the worker reports to")
    port = _free_port()
    environ = {
        **os.environ,
        "DANKAI_HOME": str(settings.home),
        "DANKAI_DATA": str(settings.data),
        "PREFECT_HOME": str(settings.home / "prefect-worker"),
        "PREFECT_API_URL": api,
        "MLFLOW_TRACKING_URI": tracking,
        "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    }
    name = "-".join([socket.gethostname(), *queues])
    command = [sys.executable, "-m", "flows.worker", name, *queues]
    health = f"http://127.0.0.1:{port}/health"
    return Service("worker", command, environ, health, logs / "worker.log")


def _reach(host: str) -> str:
    """The address at which this machine finds what listens at `host`."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def _require_free(host: str, port: int, option: str) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise InputError(f"{option} {port}: {host}:{port} cannot be used ({why})") from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
