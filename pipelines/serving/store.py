"""Requests, both answers and what they were found to be, in one SQLite file that does not grow forever."""

import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from validation.canary import Pair
from validation.errors import InputError

MAX_BODY_BYTES = 64 << 20
"""Of compressed requests and answers; beyond, the oldest go, and only what was found of them stays."""
MAX_ROWS = 200_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS exchange (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, move INTEGER NOT NULL, share REAL NOT NULL,
    time TEXT NOT NULL, assigned INTEGER NOT NULL, fault TEXT NOT NULL, incumbent_fault TEXT NOT NULL,
    disagreement REAL, incumbent_seconds REAL, candidate_seconds REAL,
    request BLOB, incumbent BLOB, candidate BLOB,
    UNIQUE (id, move));
"""
_BODY_BYTES = "SELECT coalesce(sum(length(request) + length(incumbent) + length(candidate)), 0)"
_FOUND = "assigned, fault, disagreement, incumbent_seconds, candidate_seconds"


@dataclass(frozen=True)
class Exchange:
    """A request that both sides were asked."""

    id: str
    move: int
    """Number of the ladder's move under which it was answered."""
    share: float
    assigned: bool
    fault: str
    incumbent_fault: str
    disagreement: float | None
    incumbent_seconds: float | None
    candidate_seconds: float | None
    request: bytes
    incumbent: bytes
    candidate: bytes

    @property
    def pair(self) -> Pair:
        return _pair(
            (self.assigned, self.fault, self.disagreement, self.incumbent_seconds, self.candidate_seconds)
        )


class Exchanges:
    """The file at `path`. Safe to use from several threads; whole after a kill -9.

    Nothing in it is signed: it is evidence only as far as the home folder is closed to others.
    """

    def __init__(
        self,
        path: Path,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_rows: int = MAX_ROWS,
        *,
        is_to_read: bool = False,
    ) -> None:
        """Made where there is none, unless it is only to be read. Raises InputError for a damaged file."""
        self._turn = threading.Lock()
        self._max_body_bytes, self._max_rows = max_body_bytes, max_rows
        with _damage_is_named(path):
            self._connection = _open_to_read(path) if is_to_read else _open_to_write(path)
            self._body_bytes = self._one(_BODY_BYTES)

    def add(self, exchange: Exchange) -> bool:
        """Keep an exchange; False where this id was answered under this move already."""
        bodies = [zlib.compress(body) for body in (exchange.request, exchange.incumbent, exchange.candidate)]
        row = (
            *(
                exchange.id,
                exchange.move,
                exchange.share,
                datetime.now(UTC).isoformat(timespec="milliseconds"),
            ),
            *(exchange.assigned, exchange.fault, exchange.incumbent_fault, exchange.disagreement),
            *(exchange.incumbent_seconds, exchange.candidate_seconds, *bodies),
        )
        with self._turn:
            marks = ", ".join("?" * len(row))
            added = self._connection.execute(f"INSERT OR IGNORE INTO exchange VALUES (NULL, {marks})", row)
            if added.rowcount == 0:
                return False
            self._body_bytes += sum(map(len, bodies))
            self._forget_oldest()
        return True

    def pairs(self, move: int | None = None) -> list[Pair]:
        """What was found of the requests under one move, or of all, in order."""
        where, values = ("WHERE move = ?", (move,)) if move is not None else ("", ())
        with self._turn:
            rows = self._connection.execute(f"SELECT {_FOUND} FROM exchange {where} ORDER BY number", values)
            return [_pair(row) for row in rows]

    def pairs_by_share(self) -> dict[float, list[Pair]]:
        """The same for each step of the ladder."""
        found: dict[float, list[Pair]] = {}
        with self._turn:
            for share, *row in self._connection.execute(
                f"SELECT share, {_FOUND} FROM exchange ORDER BY number"
            ):
                found.setdefault(share, []).append(_pair(row))
        return found

    @property
    def newest_at(self) -> str | None:
        """When the last exchange was kept (ISO 8601, UTC); None where there is none."""
        with self._turn:
            return self._connection.execute("SELECT max(time) FROM exchange").fetchone()[0]

    def bodies(self, identity: str) -> tuple[bytes, ...] | None:
        """Request, incumbent's and candidate's answer of that id's newest exchange, while kept."""
        with self._turn:
            row = self._connection.execute(
                "SELECT request, incumbent, candidate FROM exchange WHERE id = ? ORDER BY number DESC",
                (identity,),
            ).fetchone()
        return tuple(zlib.decompress(body) for body in row) if row and row[0] is not None else None

    @property
    def last_move(self) -> int:
        """Number of the ladder's last move, as it was noted here: one that is lost there shows."""
        with self._turn:
            return self._connection.execute("PRAGMA user_version").fetchone()[0]

    def note_move(self, number: int) -> None:
        with self._turn:
            self._connection.execute(f"PRAGMA user_version = {int(number)}")

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    def _forget_oldest(self) -> None:
        """A tenth at a time, so that it is rarely done."""
        while self._body_bytes > self._max_body_bytes:
            self._connection.execute(
                "UPDATE exchange SET request = NULL, incumbent = NULL, candidate = NULL WHERE number IN "
                "(SELECT number FROM exchange WHERE request IS NOT NULL ORDER BY number LIMIT "
                "(SELECT count(*) / 10 + 1 FROM exchange WHERE request IS NOT NULL))"
            )
            self._body_bytes = self._one(_BODY_BYTES)
        if self._one("SELECT count(*)") > self._max_rows:
            self._connection.execute(
                "DELETE FROM exchange WHERE number IN (SELECT number FROM exchange ORDER BY number LIMIT ?)",
                (self._max_rows // 10 + 1,),
            )

    def _one(self, select: str) -> int:
        return self._connection.execute(f"{select} FROM exchange").fetchone()[0]


def read_pairs(path: Path) -> tuple[dict[float, list[Pair]], int, str | None]:
    """Pairs by share, the number of the last move, and the time of the newest pair, of a file left as it is.

    Raises InputError for a damaged file.
    """
    exchanges = Exchanges(path, is_to_read=True)
    try:
        with _damage_is_named(path):
            return exchanges.pairs_by_share(), exchanges.last_move, exchanges.newest_at
    finally:
        exchanges.close()


def _open_to_write(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")  # whole after a power cut, if less the last moment
    connection.executescript(_SCHEMA)
    return connection


def _open_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)


@contextmanager
def _damage_is_named(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: not readable ({error}); restore it or move its folder away") from None


def _pair(row: Iterable) -> Pair:
    assigned, fault, disagreement, incumbent, candidate = row
    ratio = candidate / incumbent if not fault and incumbent and candidate else None
    return Pair(bool(assigned), fault, disagreement, ratio)
