"""Forks a `dankai` per line of standard input, everything heavy imported already (tiny_rollout.Preloaded).

Nothing but imports happens before the fork, so a child differs from a fresh process in its start alone.
"""

import functools
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

HEAVY = (
    "pipelines.edge.bundle",
    "pipelines.edge.export",
    "pipelines.training",
    "flows.rollout",
    "flows.tables",
    "great_expectations.checkpoint.actions",
    "great_expectations.expectations",
    "lightning",
    "matplotlib.figure",
    "mlflow.pyfunc",
    "mlflow.system_metrics.system_metrics_monitor",
    "onnxruntime",
    "pandas",
    "rich.table",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.ensemble",
    "torch.onnx",
)


def main() -> None:
    from pipelines.settings import load_settings, quiet_environment

    quiet_environment(load_settings())
    for module in HEAVY:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            run(request)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {"code": code, "out": texts[0], "err": texts[1]}


def run(request: dict[str, Any]) -> None:
    import flows.rollout
    import pipelines.serving_check
    from flows.cli import main as dankai

    flows.rollout.LENGTHS = tuple(request["lengths"])
    pipelines.serving_check._in_fresh_process = probes()
    os.environ |= request["environ"]
    if request["hook"]:
        end_at(request["hook"], signal.Signals[request["signal"]])

    sys.argv = ["dankai", *request["arguments"]]
    code: Any = 1
    try:
        dankai()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def probes() -> Callable[[list[str]], "subprocess.CompletedProcess[str]"]:
    """Runs pipelines.serving_probe in forks of a process that has done nothing but import, as this one."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        with theirs.makefile("rw") as pipe:
            for line in pipe:
                print(json.dumps(_probe(json.loads(line))), file=pipe, flush=True)
        os._exit(0)
    theirs.close()
    pipe = ours.makefile("rw")

    def ask(command: list[str]) -> "subprocess.CompletedProcess[str]":
        print(json.dumps(command), file=pipe, flush=True)
        return subprocess.CompletedProcess(command, *json.loads(pipe.readline()))

    return ask


def _probe(command: list[str]) -> tuple[int, str, str]:
    """Exit status and output of `python -m pipelines.serving_probe ARGUMENTS`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = command[2:]
            code = 1
            try:
                importlib.import_module("pipelines.serving_probe").main()
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        return code, out.read().decode(), err.read().decode()


def end_at(hook: str, number: signal.Signals) -> None:
    """Send this process a signal before or after one call of a function ("third after module:function")."""
    which, when, place = hook.split()
    module, name = place.split(":")
    *path, attribute = name.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    ending = _ending(getattr(owner, attribute), ("first", "second", "third").index(which), when, number)
    setattr(owner, attribute, ending)


def _ending(
    function: Callable[..., Any], which: int, when: str, number: signal.Signals
) -> Callable[..., Any]:
    calls = itertools.count()

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        is_it = next(calls) == which
        if is_it and when == "before":
            os.kill(os.getpid(), number)
        result = function(*arguments, **named)
        if is_it and when == "after":
            os.kill(os.getpid(), number)
        return result

    return wrapped


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
