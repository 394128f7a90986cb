"""One training on several processes, of this machine and of others: starting them, hearing them, losing one.

Each process ("rank") makes its own windows from the snapshot and runs `training.fit`; the first one of all
reports.
"""

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.devices import refuse_unfit
from pipelines.files import replace_file
from pipelines.training_job import TrainingJob
from validation.errors import InputError

if TYPE_CHECKING:
    from torch.multiprocessing.spawn import ProcessContext

    from pipelines.training import Curve, Follow, Report

_GRACE_SECONDS = 5.0  # between asking the other ranks to end and killing them
INVITATION = "ranks.json"
"""In a training's folder while it waits for other machines' ranks."""


def train_on_ranks(job: TrainingJob, report: "Report", follow: "Follow") -> "tuple[Checkpoint, Curve]":
    """Run this machine's ranks; where the plan has more nodes, invite theirs. Raises InputError on a lost
    rank."""
    result: list[Any] = []

    def hear(kind: str, *told: Any) -> None:
        {"report": report, "follow": follow, "trained": lambda *trained: result.extend(trained)}[kind](*told)

    invitation = Path(job.folder) / INVITATION
    if job.plan.nodes > 1:
        replace_file(invitation, job.model_dump_json().encode())
    try:
        _run(job, 0, hear)
    finally:
        invitation.unlink(missing_ok=True)
    return Checkpoint.model_validate_json(result[0]), result[1]


def join(invitation: Path, node: int) -> None:
    """Run machine number `node`'s ranks of the training that another machine invites to."""
    job = TrainingJob.model_validate_json(invitation.read_bytes())
    refuse_unfit(job.plan)
    _run(job, node, lambda *_: None)


def _run(job: TrainingJob, node: int, hear: Callable[..., None]) -> None:
    import torch
    from lightning.fabric.plugins.environments.lightning import find_free_network_port
    from torch.multiprocessing.spawn import start_processes

    address = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT")
    if job.plan.nodes == 1:
        address = "127.0.0.1", str(find_free_network_port())
    # a server that has imported everything forks the ranks; where there are GPUs it might have touched one
    method = "spawn" if torch.cuda.is_available() else "forkserver"
    context = get_context(method)
    context.set_forkserver_preload(["pipelines.training"])
    receiver, sender = context.Pipe(duplex=False)
    threads = max(1, torch.get_num_threads() // job.plan.devices)
    arguments = job.model_dump_json(), node, address, threads, sender
    ranks = start_processes(_rank, arguments, job.plan.devices, join=False, start_method=method)
    assert ranks is not None
    sender.close()
    died: dict[int, int] = {}
    try:
        _hear_all(ranks, receiver, hear, died)
    except Exception as error:
        raise InputError(_what_happened(job, node, died, error)) from None
    finally:
        for process in ranks.processes:
            # after Ctrl-C: a rank that waits for another does not hear of it
            process.kill()  # pyright: ignore[reportAttributeAccessIssue]


def _hear_all(
    ranks: "ProcessContext", receiver: Connection, hear: Callable[..., None], died: dict[int, int]
) -> None:
    """Pass on what the first rank tells until all have ended; `died` notes the exit status of who died first.

    Those that waited for it fail a moment later, or are killed when they do not hear that they are to end.
    """
    is_open = True
    while not ranks.join(timeout=0, grace_period=_GRACE_SECONDS):
        wait([*ranks.sentinels, *([receiver] if is_open else [])])
        died.update({n: p.exitcode for n, p in enumerate(ranks.processes) if p.exitcode and not died})
        try:
            while is_open and receiver.poll():
                hear(*receiver.recv())
        except EOFError:
            is_open = False


def _what_happened(job: TrainingJob, node: int, died: dict[int, int], error: Exception) -> str:
    """Who went first, by a signal if any did: a rank that lost another one ends with a status of its own."""
    number = min(died, key=lambda rank: died[rank], default=getattr(error, "error_index", 0))
    if died.get(number, 0) < 0:
        cause = f"was killed ({signal.Signals(-died[number]).name})"
    else:
        cause = f"failed: {str(error).strip().splitlines()[-1]}"
    number += node * job.plan.devices
    last = Path(job.folder) / "last.ckpt"
    on = f"goes on from {last}" if last.exists() else "starts anew, as no checkpoint was kept yet"
    return f"training: rank {number} of {job.plan.num_ranks} {cause}; the same command, run again, {on}"


def _rank(
    number: int, job: str, node: int, address: tuple[str, str], threads: int, sender: Connection
) -> None:
    """Body of one process; what it is told by environment variables is what Lightning looks for."""
    import torch

    told = {"LOCAL_RANK": number, "NODE_RANK": node, "MASTER_ADDR": address[0], "MASTER_PORT": address[1]}
    os.environ.update({name: str(value) for name, value in told.items()})
    torch.set_num_threads(threads)
    _train(TrainingJob.model_validate_json(job), sender if (number, node) == (0, 0) else None)


def _train(job: TrainingJob, sender: Connection | None) -> None:
    from pipelines.training import fit

    def tell(kind: str, *told: Any) -> None:
        if sender is not None:
            sender.send((kind, *told))

    windows = Windows(job.snapshot, job.spec, job.preprocessing)
    checkpoint, curve = fit(
        windows, job, lambda *told: tell("report", *told), lambda curve: tell("follow", curve)
    )
    tell("trained", checkpoint.model_dump_json(), curve)
