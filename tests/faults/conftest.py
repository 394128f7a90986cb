"""Both back ends, opened once a session: a fresh MLflow database costs seconds."""

import pytest

from tests.faults.back_ends import BackEnd, open_back_end
from tests.postgres import new_database


@pytest.fixture(scope="session")
def on_files(tmp_path_factory: pytest.TempPathFactory) -> BackEnd:
    return open_back_end(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def on_postgres(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> BackEnd:
    return open_back_end(tmp_path_factory.mktemp("postgres"), new_database(postgres))


@pytest.fixture(params=["on_files", "on_postgres"])
def back_end(request: pytest.FixtureRequest) -> BackEnd:
    return request.getfixturevalue(request.param)
