"""Where the lines of the release log lie: a file, or a table of PostgreSQL. One mechanism, two makers.

A store keeps lines in order, gives one writer at a time its turn, and knows nothing of what they say.
A turn is a lease. On a file it ends with its process, and others give up waiting after a while, because
a lock taken from a stopped process could not stop it from writing later. In PostgreSQL the server ends
the turn of a writer that stalls, and refuses what it writes afterwards.
"""

import fcntl
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.addresses import unreachable, without_password
from pipelines.files import exclusive_lock, replace_file, sync_folder, wait_for_lock
from pipelines.settings import DATABASE, Settings
from validation.errors import InputError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

LEASE_S = 20.0
"""How long a writer waits for its turn and, in PostgreSQL, how long a stalled one keeps it."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One writer's turn: every line there is, oldest first, and how to add one for good."""

    lines: list[bytes]
    append: Callable[[bytes], None]


class ReleaseStore(Protocol):
    """Lines end with a newline. Every method raises InputError where the store cannot be used."""

    @property
    def place(self) -> str:
        """Path or address, as shown to people."""
        ...

    def read(self) -> list[bytes]:
        """Every whole line, oldest first; changes nothing."""
        ...

    def writing(self) -> AbstractContextManager[Turn]:
        """The only turn there is at the time. What was appended counts once the block ended well."""
        ...

    def reconciling(self) -> AbstractContextManager[None]:
        """One process at a time brings the registry up to date."""
        ...


def store_of(settings: Settings) -> ReleaseStore:
    """PostgreSQL where DANKAI_DATABASE_URL names it, else the file in the home folder."""
    file = FileStore(settings.release_log)
    return DatabaseStore(settings.database_url) if settings.database_url else file


# A file ------------------------------------------------------------------------------------------


class FileStore:
    """One line after the other in the file at `path`, written under its lock."""

    def __init__(self, path: Path, lease_s: float = LEASE_S) -> None:
        self.path = path
        self._lease_s = lease_s

    @property
    def place(self) -> str:
        return str(self.path)

    def read(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            wait_for_lock(file.fileno(), fcntl.LOCK_SH, self.path, self._lease_s)
            return _whole_lines(file.read()).splitlines(keepends=True)

    @contextmanager
    def writing(self) -> Iterator[Turn]:
        """A last line torn by a power cut is set aside in a file of its own first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)  # less the umask
        try:
            if is_new:
                sync_folder(self.path.parent)
            wait_for_lock(file, fcntl.LOCK_EX, self.path, self._lease_s)
            lines = _set_torn_line_aside(self.path, file).splitlines(keepends=True)
            yield Turn(lines, lambda line: _append_whole(file, line))
        finally:
            os.close(file)

    def reconciling(self) -> AbstractContextManager[None]:
        return exclusive_lock(self.path.with_name(f"{self.path.name}.reconcile.lock"))


def _read_all(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _append_whole(file: int, line: bytes) -> None:
    size = os.fstat(file).st_size
    try:
        if os.write(file, line) != len(line):
            raise OSError("the disk took only a part of the entry")
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def _set_torn_line_aside(path: Path, file: int) -> bytes:
    """The log's whole lines; a last one cut short by a power cut moves to a file of its own."""
    content = _read_all(file)
    whole = _whole_lines(content)
    if torn := content[len(whole) :]:
        aside = path.with_name(f"{path.name}.torn-{hashlib.sha256(torn).hexdigest()[:12]}")
        replace_file(aside, torn)
        os.ftruncate(file, len(whole))
        os.fsync(file)
        logger.warning("%s: the last line was cut short; set aside as %s", path, aside.name)
    return whole


def _whole_lines(content: bytes) -> bytes:
    """Everything before a torn last line: one without newline, or zeroed where blocks never hit the disk."""
    last_line = content.rstrip(b"\n").rfind(b"\n") + 1
    zero = content.find(b"\0", last_line)  # no entry holds a NUL
    return content[: content.rfind(b"\n", 0, zero if zero >= 0 else len(content)) + 1]


# PostgreSQL --------------------------------------------------------------------------------------

TABLE = "dankai_release_log"
_WRITING, _RECONCILING = 0x64616E6B6169_01, 0x64616E6B6169_02  # advisory locks: "dankai" and a number
_LOCK_NOT_AVAILABLE = "55P03"


class DatabaseStore:
    """The same lines in a table, each appended in a transaction of its own. Here the table is the truth.

    Several machines may share it; each needs the others' public keys to believe their entries.
    """

    def __init__(self, url: str, lease_s: float = LEASE_S) -> None:
        self._url = url
        self._lease_s = lease_s
        self._made: Engine | None = None

    @property
    def place(self) -> str:
        return f"{without_password(self._url)} table {TABLE}"

    def read(self) -> list[bytes]:
        with self._transaction() as connection:
            exists = _one(connection, f"SELECT to_regclass('{TABLE}') IS NOT NULL")
            return _lines(connection) if exists else []

    @contextmanager
    def writing(self) -> Iterator[Turn]:
        with self._transaction(_WRITING) as connection:
            columns = "sequence bigint PRIMARY KEY, line text NOT NULL"
            _run(connection, f"CREATE TABLE IF NOT EXISTS {TABLE} ({columns})")
            lines = _lines(connection)
            numbers = itertools.count(len(lines) + 1)
            yield Turn(lines, lambda line: _insert(connection, next(numbers), line))

    @contextmanager
    def reconciling(self) -> Iterator[None]:
        with self._transaction(_RECONCILING):
            yield

    @contextmanager
    def _transaction(self, lock: int | None = None) -> Iterator["Connection"]:
        from sqlalchemy.exc import SQLAlchemyError

        lease = f"'{int(self._lease_s * 1000)}ms'"
        try:
            with self._engine().begin() as connection:
                if lock is not None:
                    _run(connection, f"SET LOCAL lock_timeout = {lease}")
                    _run(connection, f"SET LOCAL idle_in_transaction_session_timeout = {lease}")
                    _run(connection, "SET LOCAL synchronous_commit = on")
                    _run(connection, f"SELECT pg_advisory_xact_lock({lock})")
                yield connection
        except SQLAlchemyError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> InputError:
        if getattr(getattr(error, "orig", None), "pgcode", None) == _LOCK_NOT_AVAILABLE:
            return InputError(
                f"{self.place}: another process has held it for over {self._lease_s:g} s; try again"
            )
        return unreachable(self._url, getattr(error, "orig", None) or error, DATABASE)

    def _engine(self) -> "Engine":
        """Without a pool: commands are short, and a connection must not survive a fork."""
        from sqlalchemy import NullPool, create_engine

        if self._made is None:
            self._made = create_engine(
                self._url,
                poolclass=NullPool,
                connect_args={"connect_timeout": 5, "application_name": "dankai"},
            )
        return self._made


def _lines(connection: "Connection") -> list[bytes]:
    from sqlalchemy import text

    rows = connection.execute(text(f"SELECT line FROM {TABLE} ORDER BY sequence"))
    return [f"{line}\n".encode() for (line,) in rows]


def _insert(connection: "Connection", sequence: int, line: bytes) -> None:
    _run(
        connection,
        f"INSERT INTO {TABLE} (sequence, line) VALUES (:sequence, :line)",
        sequence=sequence,
        line=line.decode().removesuffix("\n"),
    )


def _run(connection: "Connection", statement: str, **values: Any) -> None:
    from sqlalchemy import text

    connection.execute(text(statement), values)


def _one(connection: "Connection", statement: str) -> Any:
    from sqlalchemy import text

    return connection.execute(text(statement)).scalar()
