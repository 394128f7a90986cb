"""Pieces of scoring and validation on the workers of a Dask cluster, as one Prefect flow."""

from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, TypeVar

from pipelines.fan_out import Spread
from pipelines.settings import Settings
from validation.errors import InputError
from validation.record import Record

R = TypeVar("R", bound=Record)


def spread_of(settings: Settings) -> Spread | None:
    """What DANKAI_DASK asks for; None is to do everything here. Raises InputError for what that lacks."""
    if settings.dask is None:
        return None
    try:
        import prefect_dask  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "prefect_dask":
            raise
        fix = "pip install 'dankai[fan-out]'"
        raise InputError(f"DANKAI_DASK: needs the package prefect-dask; {fix}") from None
    if settings.prefect_api_url is None:
        fix = "set PREFECT_API_URL to a running server's, e.g. http://127.0.0.1:4200/api"
        raise InputError(f"DANKAI_DASK: the workers need a Prefect server to report to; {fix}")
    workers = settings.dask
    return lambda function, pieces: on_dask(workers, function, pieces)


def on_dask(workers: str, function: Callable[[Any], R], pieces: Sequence[Record]) -> list[R]:
    """Run `function` on every piece; results in order. A piece whose worker dies is done by another one.

    A flow run of its own: inside the task that asks, Prefect would send that task's arguments to every worker
    with every piece, and the stores and open files among them cannot be sent.
    """
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    piece_of: Any = task(function, cache_policy=NO_CACHE, retries=1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    all_of_them = _Unsent(pieces)

    @flow(name=f"{function.__name__.replace('_', ' ')} on Dask", task_runner=_runner(workers))
    def all_pieces() -> list[R]:
        return piece_of.map(list(all_of_them)).result()

    return Context().run(all_pieces)


class _Unsent(list[Record]):
    """Stays here when Prefect sends the flow along with each of its tasks, which would be their square."""

    def __reduce__(self) -> Any:
        return _Unsent, ()


def _runner(workers: str) -> Any:
    """Of a running scheduler, or of processes of this machine for as long as the flow runs."""
    from prefect_dask.task_runners import DaskTaskRunner

    if not workers.isdecimal():
        return DaskTaskRunner(address=workers)
    return DaskTaskRunner(cluster_kwargs={"n_workers": int(workers), "threads_per_worker": 1})
