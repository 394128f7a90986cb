"""What infra/compose.yaml runs, run here: its commands and environment, on a real PostgreSQL and an S3 store.

The hosts' names become addresses of this machine, and the ports free ones; moto stands in for MinIO.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pipelines.release_log import ReleaseLog
from pipelines.settings import load_settings
from tests.operated import Operation, ask, operation, until, write_operated
from tests.tiny_rollout import ROOT, TURNS, free_port, pump_table, serving, wait_for_server, write_policy

pytestmark = [pytest.mark.operations, pytest.mark.timeout(400)]
SECRETS = {"POSTGRES_PASSWORD": "elephant", "MINIO_PASSWORD": "flamingo"}


@dataclass
class Composed:
    """The services, by the names that they have in compose.yaml."""

    store: str
    database: str
    prefect: Operation
    mlflow: Operation
    worker: Operation


def service(name: str) -> dict[str, Any]:
    """Of compose.yaml, its variables filled in as Compose does it."""
    text = (ROOT / "infra" / "compose.yaml").read_text()
    filled = re.sub(r"\$\{(\w+)(?::[?-][^}]*)?\}", lambda found: SECRETS.get(found[1], ""), text)
    return yaml.safe_load(filled)["services"][name]


def words_of(name: str) -> list[str]:
    """What follows `dankai up` in the service's command."""
    command = service(name)["command"]
    up, *words = command.split() if isinstance(command, str) else command
    assert up == "up"
    return words


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Address of an S3-compatible store with the bucket."""
    import boto3

    port, program = free_port(), Path(sys.executable).with_name("moto_server")
    address = f"http://127.0.0.1:{port}"
    with serving([str(program), "-H", "127.0.0.1", "-p", str(port)], {}, Path("/dev/null")):
        wait_for_server(address)
        boto3.client("s3", endpoint_url=address, **keys()).create_bucket(Bucket="dankai")
        yield address


def keys() -> dict[str, str]:
    environ = service("mlflow")["environment"]
    secret = environ["AWS_SECRET_ACCESS_KEY"]
    return {
        "region_name": "us-east-1",
        "aws_access_key_id": environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": secret,
    }


@pytest.fixture(scope="module")
def database(postgres: str) -> str:
    """HOST:PORT of a PostgreSQL with the account and the database that its image makes."""
    from sqlalchemy import NullPool, create_engine, text

    engine = create_engine(postgres, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    password = SECRETS["POSTGRES_PASSWORD"]
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE dankai LOGIN SUPERUSER PASSWORD '{password}'"))
        connection.execute(text("CREATE DATABASE dankai OWNER dankai"))
    return f"{engine.url.host}:{engine.url.port}"


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory, store: str, database: str) -> Iterator[Composed]:
    """Each service in a process of its own, with a home folder of its own, as in its container."""
    folder = tmp_path_factory.mktemp("composed")
    ports = {name: free_port() for name in ("prefect:4200", "mlflow:5000")}
    places = {"postgres:5432": database, "http://minio:9000": store}
    places |= {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    places["127.0.0.1:5000"] = places["mlflow:5000"]
    reach = {
        name: service("worker")["environment"][name] for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    }

    def started(name: str) -> Operation:
        environ = {**reach, **service(name)["environment"]}
        for host, place in places.items():
            environ = {key: (value or "").replace(host, place) for key, value in environ.items()}
        home = folder if name == "worker" else folder / name
        return stack.enter_context(operation(home, *words_of(name), **environ))

    write_operated(folder)
    with ExitStack() as stack:
        yield Composed(store, database, started("prefect"), started("mlflow"), started("worker"))


def test_a_drifted_batch_is_trained_on_where_compose_keeps_everything(composed: Composed) -> None:
    folder, worker = composed.worker.folder, composed.worker
    policy = write_policy(folder, latency_p50_ratio=0.0)  # a pilot that no model can pass
    command = ("rollout", "run", folder / "pump.yaml", "--policy", policy, "--bootstrap", "in use", "--quiet")
    climbed = worker.dankai(*command)
    assert climbed.code == 0, climbed.err
    pump_table().filter(pl.col("at") >= TURNS).write_csv(folder / "incoming" / "2024-05.csv")
    monitored = worker.ended(worker.start("monitor/flights-daily"))
    assert monitored["state"]["message"].startswith("retrain: 2024-05.csv"), monitored["state"]
    [retraining] = until(lambda: worker.runs_of("retrain/on-drift"), 60)
    ended = worker.ended(retraining["id"])
    assert ended["state_type"] == "COMPLETED", ended["state"]
    log = ReleaseLog.open(load_settings({**worker.environ, "DANKAI_HOME": str(worker.home)}))
    assert [str(entry.decision.action) for entry in log.entries()] == [
        "bootstrap",
        "fail",
        "retrain",
        "request",
    ]


def test_nothing_lies_in_a_home_folder_that_belongs_in_the_database_or_the_store(composed: Composed) -> None:
    for each in (composed.prefect, composed.mlflow, composed.worker):
        assert list(each.home.rglob("*.db")) == []
        assert not (each.home / "release_log.jsonl").exists()
        assert not (each.home / "artifacts").exists()
    assert _count(composed, "dankai_prefect", "flow_run") >= 2
    assert _count(composed, "dankai_mlflow", "runs") >= 5
    assert _count(composed, "dankai", "dankai_release_log") == 4


def test_the_weights_of_every_version_lie_in_the_bucket(composed: Composed) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=composed.store, **keys())
    stored = client.list_objects_v2(Bucket="dankai")["Contents"]
    weights = [each["Key"] for each in stored if each["Key"].endswith(".safetensors") and each["Size"]]
    versions = ask(f"{composed.mlflow.mlflow}/model-versions/search", method="GET")["model_versions"]
    runs = [each["run_id"] for each in versions]
    assert len(runs) == 3
    assert [run for run in runs if not any(f"/{run}/artifacts/model/" in key for key in weights)] == []


def test_each_service_stops_and_leaves_nothing(composed: Composed) -> None:
    for each in (composed.worker, composed.mlflow, composed.prefect):
        family = each.family()
        assert each.stop() < 30
        assert [process for process in family if process.is_running()] == []


def _count(composed: Composed, database: str, table: str) -> int:
    from sqlalchemy import NullPool, create_engine, text

    engine = create_engine(f"postgresql://dankai@{composed.database}/{database}", poolclass=NullPool)
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
