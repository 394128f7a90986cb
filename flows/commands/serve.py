"""Answering real requests: `dankai serve` by HTTP, `dankai shadow` from files."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.options import json_option, policy_option, quiet_option

if TYPE_CHECKING:
    from pipelines.job import Job
    from pipelines.serving.ladder import Move
    from pipelines.serving.report import StepReport
    from pipelines.serving.service import Service, Trial

_dataset = click.argument("dataset", type=click.Path(path_type=Path))
_policy = policy_option("What each step of the ladder asks (`canary`).")
_candidate = click.option(
    "--candidate",
    type=click.IntRange(1),
    metavar="VERSION",
    help="Version on trial. Default: the challenger, or what the gate holds.",
)
_deadline = click.option(
    "--deadline",
    type=click.FloatRange(0.01, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="The most that the candidate may cost a caller; then the incumbent answers.",
)
_again = click.option("--again", metavar="REASON", help="Start the ladder anew after a breach.")


@click.command(short_help="Answer by HTTP, the candidate in shadow, then for a share.")
@_dataset
@_policy
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=5001, show_default=True)
@_candidate
@_deadline
@_again
def serve(
    dataset: Path,
    policy: Path,
    host: str,
    port: int,
    candidate: int | None,
    deadline: float,
    again: str | None,
) -> None:
    """Serve DATASET's live model, and let the candidate answer beside it: in shadow, then 5, 25 and 100%.

    The contract is that of MLflow's scoring server, `budget` being a parameter:
    {"inputs": {"numeric": …, "known": …, "categorical": …}, "params": {"budget": 0.125}}
    Promotions and rollbacks are followed while it runs. Every 400 requests the monitor looks at error rate
    and latency of what is live, and takes it back by the policy's `rollback` rules.

    \b
    Examples:
      dankai serve infra/datasets/flights.yaml
      curl -d @request.json -H 'Content-Type: application/json' http://127.0.0.1:5001/invocations
      curl http://127.0.0.1:5001/ladder
    """
    from pipelines.serving.follower import open_follower
    from pipelines.serving.front_door import listening_socket, serve
    from pipelines.serving.service import Trial

    job = _open(dataset, policy)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    trial = Trial(candidate, deadline, again)
    with (
        listening_socket(host, port) as listener,
        open_follower(job, trial, _say_move, _say) as follower,
    ):
        said = f"http://{host}:{listener.getsockname()[1]}/invocations: {_who(follower.service)}"
        _say(f"{said}  (Ctrl-C stops it)")
        serve(lambda: follower.service, listener)


@click.command(short_help="The same on stored requests, without HTTP.")
@_dataset
@_policy
@click.option(
    "--requests",
    type=click.Path(path_type=Path),
    help="A .json or .jsonl file, or a folder of them. Default: the windows of the dataset's test part.",
)
@_candidate
@_deadline
@_again
@json_option
@quiet_option
def shadow(
    dataset: Path,
    policy: Path,
    requests: Path | None,
    candidate: int | None,
    deadline: float,
    again: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replay stored requests as `dankai serve` would answer them, without HTTP, and say what came of it.

    \b
    Examples:
      dankai shadow infra/datasets/flights.yaml
      dankai shadow infra/datasets/flights.yaml --requests last-week/ --json
    """
    from pipelines.serving.requests import stored_requests
    from pipelines.serving.service import Trial

    stored = list(stored_requests(requests)) if requests else None
    job = _open(dataset, policy)
    reports = _replay(job, Trial(candidate, deadline, again), stored, quiet)
    if as_json:
        import json

        click.echo(json.dumps([report.model_dump(mode="json") for report in reports], indent=1))
    else:
        _print(reports)


def _replay(job: "Job", trial: "Trial", stored: "list[Any] | None", quiet: bool) -> "list[StepReport]":
    from flows.progress import progress
    from pipelines.serving.report import step_reports
    from pipelines.serving.requests import Malformed
    from pipelines.serving.service import open_service
    from pipelines.serving.windows import requests_of_part

    asked = requests_of_part(job, "test") if stored is None else stored
    with open_service(job, trial, _say_move) as service, progress(quiet) as report:
        if service.candidate is None:
            from validation.errors import InputError

            raise InputError(
                f"{job.spec.name}: there is no candidate to compare; name one: --candidate VERSION"
            )
        _say(_who(service))
        for done, request in enumerate(asked, start=1):
            if isinstance(request, Malformed):
                _say(f"{request.place}: {request.reason}")
            else:
                _answer(service, request)
            report("answering", done, len(asked))
        return step_reports(service)


def _answer(service: "Service", request: Any) -> None:
    import json

    reply = service.router.answer(request)
    if reply.status != 200:
        _say(f"{request.id}: {json.loads(reply.body)['message']}")
    service.router.settle()  # one after another, so that neither is timed while the other works


def _open(dataset: Path, policy: Path) -> "Job":
    from pipelines.job import open_job
    from pipelines.settings import load_settings, quiet_environment

    settings = load_settings()
    quiet_environment(settings)
    return open_job(dataset, policy, settings, lambda *_: None)


def _who(service: "Service") -> str:
    said = f"version {service.incumbent.version} answers"
    if service.candidate is None or service.router.candidate is None:
        return f"{said}, nothing is on trial"
    ladder = service.router.candidate.ladder
    trial = f"version {service.candidate.version}"
    if ladder.is_breached:
        return f'{said}; {trial} is out: {ladder.last.reason} (--again "REASON" starts anew)'
    return f"{said}; {trial} in shadow" if not ladder.share else f"{said}; {trial} answers {ladder.share:.0%}"


def _say_move(move: "Move") -> None:
    _say(f"{move.action}: the candidate now answers {move.share:.0%} of the callers ({move.reason})")


def _say(text: str) -> None:
    from pipelines.escaping import printable

    click.echo(printable(text), err=True)


def _print(reports: "list[StepReport]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from flows.tables import console
    from pipelines.escaping import printable

    table = Table(title="Candidate against incumbent, step by step", title_justify="left")
    for name in (
        "share",
        "requests",
        "failed",
        "error rate",
        "disagreement",
        "latency ratio",
        "verdict",
        "then",
    ):
        table.add_column(name, overflow="fold")
    for report in reports:
        verdict = report.verdict
        intervals = (verdict.error_rate, verdict.disagreement, verdict.latency_ratio)
        cells = [f"{verdict.share:.0%}", str(verdict.num_requests), str(verdict.num_faults)]
        cells += [f"{each.value:.3g} [{each.low:.3g}, {each.high:.3g}]" for each in intervals]
        open_ = next((reason for reason in verdict.reasons if not reason.startswith("PASS")), "")
        cells += [str(verdict.outcome), f"{report.ended}: {report.reason}" if report.ended else open_]
        table.add_row(*(escape(printable(cell)) for cell in cells))
    console().print(table)
