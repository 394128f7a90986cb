"""What `dankai up` refuses before anything is started, and whose database is where."""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import dankai
from flows.databases import create_database, databases_of
from flows.services import plan_of
from pipelines.settings import load_settings
from validation.errors import InputError

URL = "postgresql://ada:secret@127.0.0.1:5433/dankai"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("worker",), "PREFECT_API_URL: not set"),
        (("--deployments", "nowhere.yaml"), "nowhere.yaml: no such file; name one with --deployments"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_and_nothing_is_written(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANKAI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    refused = CliRunner().invoke(dankai, ["up", *arguments])
    assert isinstance(refused.exception, InputError)
    assert words in str(refused.exception)
    assert not (tmp_path / "home").exists()


def test_a_port_in_use_is_named_with_its_option(tmp_path: Path) -> None:
    settings = load_settings({"DANKAI_HOME": str(tmp_path)})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--mlflow-port {port}: .* \(Address already in use\)"):
            plan_of(settings, ["mlflow"], "127.0.0.1", 4200, port, tmp_path, ())


def test_a_second_one_of_the_same_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.files import exclusive_lock

    monkeypatch.setenv("DANKAI_HOME", str(tmp_path))
    with exclusive_lock(tmp_path / "up-mlflow.lock"):
        refused = CliRunner().invoke(dankai, ["up", "mlflow", "--mlflow-port", "59871"])
    assert "another process is at work here" in str(refused.exception)


def test_by_default_each_server_has_a_file_in_the_home_folder(tmp_path: Path) -> None:
    databases = databases_of(load_settings({"DANKAI_HOME": str(tmp_path)}))
    assert databases.prefect == f"sqlite+aiosqlite:///{tmp_path}/prefect/prefect.db"
    assert databases.mlflow == f"sqlite:///{tmp_path}/mlflow.db"


def test_one_setting_moves_all_to_postgresql_each_into_a_database_of_its_own(tmp_path: Path) -> None:
    environ = {"DANKAI_HOME": str(tmp_path), "DANKAI_DATABASE_URL": f"{URL}?sslmode=require"}
    databases = databases_of(load_settings(environ))
    mlflow = "postgresql://ada:secret@127.0.0.1:5433/dankai_mlflow?sslmode=require"
    assert databases.mlflow == mlflow
    prefect = "postgresql+asyncpg://ada:secret@127.0.0.1:5433/dankai_prefect?ssl=require"
    assert databases.prefect == prefect


def test_missing_databases_are_made_once_and_where_that_is_not_allowed_an_administrator_is_asked(
    postgres: str, tmp_path: Path
) -> None:
    from sqlalchemy import NullPool, create_engine, text

    from tests.postgres import new_database

    url = new_database(postgres)
    settings = load_settings({"DANKAI_HOME": str(tmp_path), "DANKAI_DATABASE_URL": url})
    for server in ("prefect", "prefect", "mlflow"):
        create_database(settings, server)
    name = url.rsplit("/", 1)[1]
    engine = create_engine(postgres, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        found = connection.execute(text("SELECT datname FROM pg_database")).scalars().all()
        connection.execute(text(f"CREATE ROLE guest_{name} LOGIN"))
        connection.execute(text(f"CREATE DATABASE alone_{name}"))
    assert {f"{name}_prefect", f"{name}_mlflow"} <= set(found)
    as_guest = postgres.replace("postgres:unused@", f"guest_{name}@").rsplit("/", 1)[0]
    guest = load_settings({"DANKAI_HOME": str(tmp_path), "DANKAI_DATABASE_URL": f"{as_guest}/alone_{name}"})
    with pytest.raises(InputError, match=f"CREATE DATABASE alone_{name}_prefect OWNER guest_{name}"):
        create_database(guest, "prefect")


def test_the_servers_get_neither_the_signing_key_nor_the_release_logs_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DANKAI_SIGNING_KEY", "k")
    monkeypatch.setenv("DANKAI_DATABASE_URL", URL)
    settings = load_settings({"DANKAI_HOME": str(tmp_path), "DANKAI_DATABASE_URL": URL})
    (tmp_path / "prefect.yaml").touch()
    parts = ["prefect", "mlflow", "worker"]
    plan = plan_of(settings, parts, "127.0.0.1", 59872, 59873, tmp_path / "prefect.yaml", ())
    assert plan.prefect is not None
    assert plan.mlflow is not None
    assert plan.worker is not None
    for server in (plan.prefect, plan.mlflow):
        assert {"DANKAI_SIGNING_KEY", "DANKAI_DATABASE_URL"}.isdisjoint(server.environ)
        assert not any("secret" in word for word in server.command)
    assert plan.worker.environ["DANKAI_SIGNING_KEY"] == "k"
    assert plan.worker.environ["PREFECT_API_URL"] == "http://127.0.0.1:59872/api"
    assert plan.worker.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:59873"
