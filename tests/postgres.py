"""A real PostgreSQL of the tests' own, run by a user that is not root, in a folder that goes with it."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tiny_rollout import free_port

SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=150")
"""Nothing here outlives the tests, and they kill clients, not the server."""


def programs() -> Path | None:
    """The folder of initdb and pg_ctl: on the PATH, or where Debian keeps the newest version."""
    if on_path := shutil.which("initdb"):
        return Path(on_path).parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def lacking() -> str:
    """Why no server can be started here, "" where one can."""
    if programs() is None:
        return "PostgreSQL absent: install Debian's package postgresql to run this"
    if os.getuid() != 0:
        return ""
    if "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return "PostgreSQL does not run as root and there is no user postgres to run it"
    if _runuser() is None:
        return "PostgreSQL does not run as root and there is no runuser: install Debian's package util-linux"
    return ""


def _runuser() -> str | None:
    """Where it is: often beside the PATH of a service or of continuous integration."""
    return shutil.which("runuser", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def _as_postgres(command: list[str]) -> list[str]:
    """The command as a user whom PostgreSQL accepts."""
    return [str(_runuser()), "-u", "postgres", "--", *command] if os.getuid() == 0 else command


@contextmanager
def server() -> Iterator[str]:
    """Address of a running server's first database."""
    bin_folder, folder = programs(), Path(tempfile.mkdtemp(prefix="dankai-postgres-", dir="/tmp"))
    assert bin_folder is not None
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = _as_postgres([str(bin_folder / program), "-D", str(folder / "data"), *arguments])
        with (folder.with_suffix(".log")).open("ab") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True, timeout=60, cwd="/")

    port = free_port()
    options = " ".join(f"-c {setting}" for setting in SETTINGS)
    try:
        run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C")
        place = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        run("pg_ctl", "start", "--wait", "-l", str(folder / "log"), "-o", f"{place} {options}")
        try:
            yield f"postgresql://postgres:unused@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


def new_database(address: str) -> str:
    """Address of a fresh database on the server."""
    from sqlalchemy import NullPool, create_engine, text

    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(address, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return f"{address.rsplit('/', 1)[0]}/{name}"


def kill_and_restart(address: str) -> None:
    """kill -9 the server at the address, and start it again as it was."""
    import psutil

    port = address.rsplit(":", 1)[1].split("/")[0]
    [server] = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "postgres" and ["-p", port] == _after(process.info["cmdline"], "-p")
    ]
    command, backends = server.cmdline(), server.children(recursive=True)
    server.kill()
    psutil.wait_procs(backends, 30)  # they notice, and end by themselves
    with open(os.devnull, "wb") as nowhere:
        subprocess.Popen(
            _as_postgres(command), stdout=nowhere, stderr=nowhere, cwd="/", start_new_session=True
        )


def _after(words: list[str], option: str) -> list[str]:
    return words[words.index(option) :][:2] if option in words else []
