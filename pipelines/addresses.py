"""Whether a server answers at all, asked before MLflow or Prefect, which go on asking for minutes."""

import base64
import re
import socket
import sqlite3
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from validation.errors import InputError

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
TIMEOUT_S = 5.0


def require_answer(uri: str, variable: str = "MLFLOW_TRACKING_URI") -> None:
    """Raises InputError if no server listens at the `uri` of `variable`, or its SQLite file is unusable."""
    try:
        if uri.startswith("sqlite:"):
            _open_file(Path(uri.split("///", 1)[-1]))
        else:
            _connect(uri)
    except (OSError, ValueError, LookupError, sqlite3.Error) as error:
        raise unreachable(uri, error, variable) from error


def unreachable(uri: str, error: BaseException, variable: str = "MLFLOW_TRACKING_URI") -> InputError:
    """The one line that says so, without the password that `uri` or `error` may hold."""
    reason = without_password((str(error).splitlines() or [type(error).__name__])[0])
    return InputError(
        f"{variable}: {without_password(uri)} does not answer ({reason}); "
        "start the server or correct the address"
    )


def without_password(text: str) -> str:
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


def request_to(address: str, body: bytes | None = None) -> urllib.request.Request:
    """An HTTP request (of JSON, where it has a body); name and password of the address become a header."""
    parts = urlsplit(address)
    request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), body)
    if body is not None:
        request.add_header("Content-Type", "application/json")
    if parts.username:
        named = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(named.encode()).decode()}")
    return request


def _open_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=TIMEOUT_S)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    finally:
        connection.close()


def _connect(uri: str) -> None:
    parts = urlsplit(uri)
    port = parts.port or PORTS[parts.scheme.split("+")[0]]
    if not parts.hostname and parts.scheme.startswith("http"):
        raise ValueError("it names no host")
    if parts.hostname:  # without one the database driver uses a local socket, which fails at once by itself
        socket.create_connection((parts.hostname, port), TIMEOUT_S).close()
