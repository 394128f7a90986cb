"""The nursery: a process that has imported everything once, and forks one process per model that is served.

`python -m pipelines.serving.worker SOCKET` (a file descriptor). Commands, one frame each:
{"start": FOLDER, "threads": N} with a socket for the new process, answered {"pid": PID}; {"kill": PID}.
The nursery ends when its socket closes, its children when it ends: nothing is left behind, whatever died.
"""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from pipelines.serving.frames import receive_frame, send_frame

_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Obey commands until the socket closes."""
    _import_everything()
    children: set[int] = set()
    with socket.socket(fileno=descriptor) as commands:
        while True:
            _reap(children)
            try:
                given, descriptors, _, _ = socket.recv_fds(commands, 1, 1)  # one byte carries the socket
                command, _ = receive_frame(commands, None) if given else ({}, b"")
            except OSError:
                break
            if not given:
                break
            if "start" in command:
                pid = _fork(command, socket.socket(fileno=descriptors[0]), commands)
                children.add(pid)
                send_frame(commands, {"pid": pid}, b"", None)
            elif command.get("kill") in children:  # ours until reaped: the number cannot be another's by now
                os.kill(command["kill"], signal.SIGKILL)
                os.waitpid(command["kill"], 0)
                children.discard(command["kill"])
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _import_everything() -> None:
    """All but sparse_model, whose copy in each model's folder is the one that counts."""
    import torch  # noqa: F401

    from pipelines.servable import import_mlflow

    import_mlflow()


def _reap(children: set[int]) -> None:
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)


def _fork(command: dict[str, Any], connection: socket.socket, commands: socket.socket) -> int:
    pid = os.fork()
    if pid == 0:
        commands.close()
        _serve(Path(command["start"]), command["threads"], connection)
    connection.close()
    return pid


def _serve(folder: Path, threads: int, connection: socket.socket) -> NoReturn:
    """Load the model, say so, and answer requests one after another until the socket closes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        model = _load(folder, threads)
    except BaseException as error:
        said = (str(error).strip().splitlines() or [""])[0][:300]
        send_frame(connection, {"failed": f"{type(error).__name__}: {said}"}, b"", None)
        os._exit(1)
    send_frame(connection, {"ready": True}, b"", None)
    try:
        while True:
            _, request = receive_frame(connection, None)
            header, answer = model.answer(request)
            send_frame(connection, header, answer, None)
    except OSError:
        os._exit(0)


def _load(folder: Path, threads: int) -> "_Watched":
    import torch

    from pipelines.servable import load_model

    torch.set_num_threads(threads)
    model = load_model(folder)
    if model.input_example is not None:  # the first answer costs more than the others: no caller pays for it
        model.predict(model.input_example)
    return _Watched(model)


class _Watched:
    """A pyfunc model that remembers what was wrong with its last answer."""

    def __init__(self, model: Any) -> None:
        self.metadata = model.metadata
        self._model = model
        self._fault = ""

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        answer = self._model.predict(data, params=params)
        width = self.metadata.get_output_schema().inputs[0].shape[-1]
        self._fault = _fault(answer, (*data["numeric"].shape[:2], width))
        return answer

    def answer(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        """Header (status, what is wrong with the answer) and body, as MLflow's scoring server gives it."""
        from pipelines.servable import invoke

        self._fault = ""
        status, body = invoke(self, request, "application/json")
        return {"status": status, "fault": self._fault}, body.encode()


def _fault(answer: Any, expected: tuple[int, ...]) -> str:
    import numpy as np

    if np.shape(answer) != expected:
        return f"shape: it answered {list(np.shape(answer))}, not {list(expected)}"
    return "" if np.isfinite(answer).all() else "nan: it answered NaN or infinity"


if __name__ == "__main__":
    main(int(sys.argv[1]))
