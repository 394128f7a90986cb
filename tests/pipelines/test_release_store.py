"""Files and PostgreSQL keep the same lines; what is edited, missing or moved in either is found."""

from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

from pipelines.release_log import ReleaseLog
from pipelines.release_store import TABLE, DatabaseStore, FileStore, store_of
from pipelines.rollout import current_state
from pipelines.settings import load_settings
from tests.postgres import new_database
from tests.release_cases import DATASET, climbed, log_at, log_in, started
from validation.errors import InputError


@pytest.fixture
def database(postgres: str) -> str:
    return new_database(postgres)


def tamper(database: str, statement: str) -> None:
    with create_engine(database, poolclass=NullPool).begin() as connection:
        connection.execute(text(statement.format(table=TABLE)))


def test_a_log_that_nobody_wrote_is_empty_and_reading_makes_no_table(database: str, tmp_path: Path) -> None:
    assert log_at(database, tmp_path).entries() == []
    with create_engine(database, poolclass=NullPool).connect() as connection:
        assert connection.execute(text(f"SELECT to_regclass('{TABLE}')")).scalar() is None


def test_the_database_holds_the_lines_that_a_file_would(database: str, tmp_path: Path) -> None:
    there = log_at(database, tmp_path)
    state = climbed(there)
    assert current_state(log_at(database, tmp_path), DATASET) == state
    here = log_in(tmp_path)
    assert here.take_over(there.store) == 4
    assert here.store.read() == there.store.read()
    assert here.entries() == there.entries()
    assert here.take_over(there.store) == 0  # again, after a crash, it goes on from where it was


def test_a_history_is_not_mixed_with_another(database: str, tmp_path: Path) -> None:
    started(log_at(database, tmp_path))
    other = log_in(tmp_path)
    climbed(other)
    with pytest.raises(InputError, match="tells another history than"):
        other.take_over(DatabaseStore(database))
    assert len(other.entries()) == 4


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE {table} SET line = replace(line, 'ada', 'eve') WHERE sequence = 2", "line 2: its content"),
        ("UPDATE {table} SET line = line || ' ' WHERE sequence = 3", "line 3: its text was changed"),
        ("DELETE FROM {table} WHERE sequence = 2", "line 2: sequence 3 where 2 belongs"),
        (
            "UPDATE {table} SET sequence = 9 - sequence WHERE sequence > 2",
            "line 3: sequence 4 where",
        ),
        ("DELETE FROM {table} WHERE sequence = 1", "line 1: sequence 2 where 1 belongs"),
    ],
)
def test_what_is_edited_missing_or_moved_in_the_table_is_found(
    statement: str, said: str, database: str, tmp_path: Path
) -> None:
    log = log_at(database, tmp_path)
    state = climbed(log)
    tamper(database, statement)
    for use in (log.entries, lambda: log.append(log.entries()[0].decision, state.head)):
        with pytest.raises(InputError, match=said) as caught:
            use()
        assert "unused" not in str(caught.value)  # the password


def test_a_database_that_is_not_there_is_one_line_without_its_password(tmp_path: Path) -> None:
    log = ReleaseLog(DatabaseStore("postgresql://me:hidden@127.0.0.1:9/none"), tmp_path / "keys", environ={})
    for use in (log.entries, lambda: started(log)):
        with pytest.raises(InputError, match=r"DANKAI_DATABASE_URL: .* does not answer") as caught:
            use()
        assert "hidden" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_setting_a_database_does_not_start_history_anew(database: str, tmp_path: Path) -> None:
    before = load_settings({"DANKAI_HOME": str(tmp_path)})
    climbed(ReleaseLog.open(before))
    settings = load_settings({"DANKAI_HOME": str(tmp_path), "DANKAI_DATABASE_URL": database})
    assert "unused" not in repr(settings)
    for use in (ReleaseLog.of, ReleaseLog.open):
        with pytest.raises(InputError, match=r"holds 4 entries; take them over with: dankai audit import"):
            use(settings)
    moved = ReleaseLog(store_of(settings), settings.keys)
    assert moved.take_over(FileStore(before.release_log)) == 4
    assert ReleaseLog.open(settings).entries() == ReleaseLog.open(before).entries()


@pytest.mark.parametrize("wrong", ["mysql://me:hidden@db/x", "hidden", "sqlite:///x"])
def test_only_postgresql_is_taken(wrong: str) -> None:
    with pytest.raises(InputError, match=r"DANKAI_DATABASE_URL: .* use postgresql://") as caught:
        load_settings({"DANKAI_DATABASE_URL": wrong})
    assert "hidden" not in str(caught.value)
