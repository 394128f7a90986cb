"""Forks a `dankai` per request, everything heavy imported already (tiny_rollout.Preloaded).

    python -m tests.preloaded SOCKET

Nothing but imports, and the script that every report holds, comes before the fork, so a child differs from a
fresh process in its start alone. Prefect reads its settings as it is imported: the twin that answers at
SOCKET.alone leaves that to its children. Both end with their standard input.
"""

import atexit
import functools
import importlib
import itertools
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from tests.forked_processes import Forks

HEAVY = (
    "pipelines.edge.bundle",
    "pipelines.edge.export",
    "pipelines.training",
    "great_expectations.checkpoint.actions",
    "great_expectations.expectations",
    "lightning",
    "matplotlib.figure",
    "mlflow.pyfunc",
    "mlflow.system_metrics.system_metrics_monitor",
    "onnxruntime",
    "pandas",
    "pipelines.report.leaving",
    "rich.table",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.ensemble",
    "torch.onnx",
)
WITH_PREFECT = ("flows.rollout", "flows.tables", "prefect.artifacts")

FRESH = ("pipelines.cost", "pipelines.serving_check", "pipelines.edge.measurement")
"""Run models in processes that hold nothing else."""


def main() -> None:
    from pipelines.settings import load_settings, quiet_environment

    quiet_environment(load_settings())
    from pipelines.report.html import vega

    for module in HEAVY:
        importlib.import_module(module)
    vega()
    if os.fork() == 0:
        return serve(f"{sys.argv[1]}.alone")
    for module in WITH_PREFECT:
        importlib.import_module(module)
    serve(sys.argv[1])


def serve(place: str) -> None:
    """Answer each request in a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen()
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
            asked, _ = door.accept()
            with asked:
                if os.fork() == 0:
                    door.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    request = json.loads(asked.makefile().readline())
                    asked.sendall(json.dumps(answer(request)).encode() + b"\n")
                    os._exit(0)
    os._exit(0)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 1
            try:
                code = run(request)
            except BaseException:
                traceback.print_exc()
            finally:  # never by way of the libraries' own ends: they wait for threads that no fork has
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {"code": code, "out": texts[0], "err": texts[1]}


def run(request: dict[str, Any]) -> int:
    """Its exit status, once all that it printed is written."""
    import flows.rollout
    from flows.cli import main as dankai

    flows.rollout.LENGTHS = tuple(request["lengths"])
    if not request["fresh"]:
        forks = Forks()
        for module in FRESH:
            importlib.import_module(module).subprocess = forks  # pyright: ignore[reportAttributeAccessIssue]
    os.environ |= request["environ"]
    if request["hook"]:
        end_at(request["hook"], signal.Signals[request["signal"]])

    sys.argv = ["dankai", *request["arguments"]]
    code: Any = 1
    try:
        dankai()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    if not os.environ.get("PREFECT_API_URL"):
        atexit._run_exitfuncs()  # which end the server that Prefect started for this process
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


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
    main()
