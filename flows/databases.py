"""Each server's own database: SQLite in the home folder, or beside the release log's on PostgreSQL.

`python -m flows.databases SERVER` makes what is missing and brings MLflow's up to date; Prefect's server does
that for its own as it starts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.settings import DATABASE, Settings

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine


@dataclass(frozen=True)
class Databases:
    """Addresses, perhaps with a password: for the environment of the server that uses it, nothing else."""

    prefect: str
    mlflow: str


def databases_of(settings: Settings) -> Databases:
    """With DANKAI_DATABASE_URL=postgresql://.../dankai: dankai_prefect and dankai_mlflow on that server.

    A database that MLFLOW_TRACKING_URI names stays MLflow's.
    """
    local = f"sqlite:///{settings.home}/mlflow.db"
    has_own = settings.tracking_uri != local and not settings.tracking_uri.startswith("http")
    if settings.database_url is None:
        prefect = f"sqlite+aiosqlite:///{settings.home}/prefect/prefect.db"
        return Databases(prefect, settings.tracking_uri if has_own else local)
    prefect, mlflow = (_beside(settings.database_url, server) for server in ("prefect", "mlflow"))
    return Databases(_for_asyncpg(prefect), settings.tracking_uri if has_own else _text(mlflow))


def create_database(settings: Settings, server: str) -> None:
    """Make the server's database on PostgreSQL where it is missing; SQLite's make themselves.

    Raises InputError where the server does not answer or the account may not make one.
    """
    if settings.database_url is None:
        return
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import SQLAlchemyError

    from pipelines.addresses import unreachable

    engine = create_engine(
        settings.database_url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 5},
    )
    try:
        _create(engine, str(_beside(settings.database_url, server).database))
    except SQLAlchemyError as error:
        raise unreachable(settings.database_url, getattr(error, "orig", None) or error, DATABASE) from error


def _create(engine: "Engine", name: str) -> None:
    from sqlalchemy import text
    from sqlalchemy.exc import ProgrammingError

    from validation.errors import InputError

    with engine.connect() as connection:
        quoted = engine.dialect.identifier_preparer.quote(name)
        known = text("SELECT count(*) FROM pg_database WHERE datname = :name")
        if connection.execute(known, {"name": name}).scalar():
            return
        try:
            connection.execute(text(f"CREATE DATABASE {quoted}"))
        except ProgrammingError as error:
            if getattr(error.orig, "pgcode", None) == "42P04":  # another process was as quick
                return
            account = engine.url.username
            raise InputError(
                f"{DATABASE}: {account} may not make the database {name}; "
                f"let an administrator run: CREATE DATABASE {quoted} OWNER {account}"
            ) from error


def _beside(url: str, server: str) -> "URL":
    from sqlalchemy import make_url

    address = make_url(url)
    return address.set(database=f"{address.database}_{server}")


def _for_asyncpg(address: "URL") -> str:
    """The same address for Prefect's driver, which calls the encryption of a connection `ssl`."""
    query = {{"sslmode": "ssl"}.get(name, name): value for name, value in address.query.items()}
    return _text(address.set(drivername="postgresql+asyncpg", query=query))


def _text(address: "URL") -> str:
    return address.render_as_string(hide_password=False)


def main() -> None:
    """Exits with 1 and one line where it cannot be done."""
    import sys

    from pipelines.settings import load_settings, quiet_environment
    from validation.errors import InputError

    settings = load_settings()
    quiet_environment(settings)
    try:
        create_database(settings, sys.argv[1])
        if sys.argv[1] == "mlflow":
            from pipelines.registry import migrate

            migrate(databases_of(settings).mlflow)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
