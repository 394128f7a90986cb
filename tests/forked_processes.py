"""Stands in for `subprocess` where the product runs `python -m MODULE` afresh: forks, seconds sooner.

They are forks of a process that has done nothing but import, made before its maker does anything else. They
get their own standard streams, environment and arguments, may be killed, and end with an exit status.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_LONGEST = 1 << 20  # of a command with its environment


class Forks:
    """As much of `subprocess` as is needed. To be made before anything else is done."""

    PIPE, TimeoutExpired, CompletedProcess = (
        subprocess.PIPE,
        subprocess.TimeoutExpired,
        subprocess.CompletedProcess,
    )

    def __init__(self) -> None:
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._door.close()
            _fork_on_request(theirs)
        theirs.close()

    def Popen(self, command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> "Fork":
        return Fork(self._door, command, env)

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str], **_: Any
    ) -> "subprocess.CompletedProcess[str]":
        with Fork(self._door, command, env) as fork:
            out, err = fork.communicate()
            return subprocess.CompletedProcess(list(command), fork.wait(), out, err)


class Fork:
    """A process that runs the module of `python -m MODULE ARGUMENTS`."""

    def __init__(self, door: socket.socket, command: Sequence[str], env: Mapping[str, str]) -> None:
        asks, self._stdin = os.pipe()
        self._stdout, answers = os.pipe()
        self._ended, status = os.pipe()
        self._err = os.fdopen(os.memfd_create("stderr"), "w+")
        message = json.dumps([list(command[2:]), dict(env)]).encode()
        socket.send_fds(door, [message], [asks, answers, self._err.fileno(), status])
        for theirs in (asks, answers, status):
            os.close(theirs)
        self.stdin, self.stdout, self._status = (
            os.fdopen(self._stdin, "w"),
            os.fdopen(self._stdout),
            os.fdopen(self._ended),
        )
        self.pid = int(self._status.readline())

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self._status, self._err):
            stream.close()

    def communicate(self) -> tuple[str, str]:
        self.stdin.close()
        out = self.stdout.read()
        self._err.seek(0)
        return out, self._err.read()

    def wait(self) -> int:
        return int(self._status.readline())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _fork_on_request(door: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, streams, *_ = socket.recv_fds(door, _LONGEST, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            door.close()
            _watch(*json.loads(message), *streams)
        for stream in streams:
            os.close(stream)


def _watch(command: list[str], env: dict[str, str], *streams: int) -> None:
    """Fork the process itself, and tell its number and its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, status = streams
    child = os.fork()
    if child == 0:
        os.close(status)
        _run(command, env, standard)
    for stream in standard:
        os.close(stream)
    os.write(status, f"{child}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):  # nobody waits for the end of what was killed
        os.write(status, f"{code}\n".encode())
    os._exit(0)


def _run(command: list[str], env: dict[str, str], standard: list[int]) -> None:
    for number, stream in enumerate(standard):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(env)
    module, *arguments = command
    sys.argv = [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
