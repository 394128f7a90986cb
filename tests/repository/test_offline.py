"""No test opens a socket beyond loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

OUTSIDE = ("192.0.2.1", 9)  # TEST-NET-1: documentation only, never routed


def run_python(code: str, tmp_path: Path) -> tuple[int, str]:
    log = tmp_path / "attempts"
    environment = os.environ | {"DANKAI_TEST_NETWORK_ATTEMPTS": str(log)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=30)
    return done.returncode, log.read_text() if log.exists() else ""


def test_this_process_cannot_connect_beyond_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANKAI_TEST_NETWORK_ATTEMPTS", str(tmp_path / "attempts"))
    with socket.socket() as client, pytest.raises(ConnectionRefusedError, match="stay on this machine"):
        client.connect(OUTSIDE)
    with pytest.raises(ConnectionRefusedError, match="stay on this machine"):
        socket.getaddrinfo("example.invalid", 443)
    assert len((tmp_path / "attempts").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "attempt",
    [
        f"socket.socket().connect({OUTSIDE})",
        f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', {OUTSIDE})",
        "socket.getaddrinfo('example.invalid', 443)",
        "socket.gethostbyname('example.invalid')",
    ],
)
def test_a_child_process_cannot_either_and_its_attempt_is_noted(attempt: str, tmp_path: Path) -> None:
    code = f"import socket\ntry: {attempt}\nexcept ConnectionRefusedError: raise SystemExit(3)"
    status, noted = run_python(code, tmp_path)
    assert status == 3
    assert noted.startswith("socket.")


def test_loopback_stays_open(tmp_path: Path) -> None:
    code = (
        "import socket; server = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(('localhost', server.getsockname()[1])).close()"
    )
    assert run_python(code, tmp_path) == (0, "")
