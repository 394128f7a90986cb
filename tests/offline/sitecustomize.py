"""Refuses every socket beyond loopback, in the tests and, through PYTHONPATH, in the processes they start.

An audit hook sees what a patched `socket.socket` would miss: every lookup and connection through Python's
socket module, however it was imported. Libraries in C or Rust that open sockets themselves raise no such
event and are not seen.
"""

import ipaddress
import os
import socket
import sys

ATTEMPTS = "DANKAI_TEST_NETWORK_ATTEMPTS"
_POSITION_OF_ADDRESS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}


def is_local(host: object) -> bool:
    """True for this machine: no host, its own name, or a loopback address."""
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or name in {"", "localhost", socket.gethostname()}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def guard(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook: note the attempt (a library may swallow the error) and refuse it."""
    if event not in _POSITION_OF_ADDRESS:
        return
    address = arguments[_POSITION_OF_ADDRESS[event]]
    if isinstance(address, str) and event == "socket.connect":
        return  # a Unix socket's path
    host = address[0] if isinstance(address, tuple) else address
    if is_local(host):
        return
    if log := os.environ.get(ATTEMPTS):
        with open(log, "a", encoding="utf-8") as attempts:
            attempts.write(f"{event} {host!r} by {sys.argv[:2]}\n")
    raise ConnectionRefusedError(f"tests stay on this machine: {event} {host!r}")


sys.addaudithook(guard)
