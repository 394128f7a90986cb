"""Messages between the router and a model's process: a JSON header and bytes, nothing that holds code."""

import json
import socket
import struct
import time
from typing import Any

MAX_BYTES = 1 << 28
"""A process gone wrong must not fill the memory of the one that waits for it."""
_SIZES = struct.Struct("!II")


def send_frame(
    connection: socket.socket, header: dict[str, Any], body: bytes, deadline: float | None
) -> None:
    """Raises TimeoutError at `deadline` (of time.monotonic), OSError when the other side is gone."""
    text = json.dumps(header).encode()
    connection.settimeout(_left(deadline))
    connection.sendall(_SIZES.pack(len(text), len(body)) + text + body)


def receive_frame(connection: socket.socket, deadline: float | None) -> tuple[dict[str, Any], bytes]:
    """Header and body. Raises TimeoutError at `deadline`, OSError when the other side is gone or mad."""
    sizes = _SIZES.unpack(_receive(connection, _SIZES.size, deadline))
    if sum(sizes) > MAX_BYTES:
        raise ConnectionError(f"a message of {sum(sizes)} bytes")
    text, body = (_receive(connection, size, deadline) for size in sizes)
    try:
        return dict(json.loads(text)), body
    except (ValueError, TypeError):
        raise ConnectionError("a message that is none") from None


def _receive(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    received = bytearray()
    while len(received) < size:
        connection.settimeout(_left(deadline))
        part = connection.recv(min(size - len(received), 1 << 20))
        if not part:
            raise ConnectionResetError("the other side is gone")
        received += part
    return bytes(received)


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
