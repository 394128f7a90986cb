"""Approval in Prefect's UI: a suspended run per request, resumed with a typed answer.

`dankai approvals` serves it. Prefect's open-source server knows no accounts, so an answer given there
carries a name and no account. A request whose policy compares accounts is shown there and answered at the
command line.
"""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from pipelines.actors import Actor, refuse_unusable_name
from pipelines.approvals import find_request, waiting, waiting_sentence
from pipelines.release import answer_request
from pipelines.release_log import ReleaseLog
from pipelines.settings import Settings, load_settings

DEPLOYMENT = "approval/approval"


class Answer(RunInput):
    """What the person who resumes the run fills in."""

    name: str = Field(description="Who you are; kept in the release log")
    approve: bool = Field(description="Let this version in, or decline it")
    reason: str = Field(description="Why; kept in the release log")


def ask_anew(flow: Any, flow_run: FlowRun, state: State) -> None:
    """After an answer that was refused, or a run that broke: ask again while the request waits."""
    settings = load_settings()
    if any(pending.id == flow_run.parameters["request"] for _, pending in waiting(ReleaseLog.open(settings))):
        ask_in_prefect(settings)


@flow(name="approval", flow_run_name="approve {request}?", on_failure=[ask_anew])
def approval(request: str) -> State[str]:
    """Suspend until somebody answers; then record the answer, judge again, and say what came of it.

    A request that needs proven accounts is answered at the command line; this run only says so.
    """
    settings = load_settings()
    state, pending = find_request(ReleaseLog.open(settings), request)
    asked = waiting_sentence(state, pending)
    if pending.terms.needs_accounts:
        return Completed(message=f"To be answered at the command line, by proven accounts. {asked}")
    answer = suspend_flow_run(
        wait_for_input=Answer.with_initial_data(description=asked), timeout=None, key=f"answer-{request}"
    )
    refuse_unusable_name(answer.name.strip())
    person = Actor(name=answer.name.strip())
    after = answer_request(settings, request, person, answer.reason, answer.approve, lambda *_: None)
    return Completed(message=f"{after.dataset}: stage {after.stage}, version {after.champion} is live")


def ask_in_prefect(settings: Settings) -> None:
    """A run for everything that waits, where a Prefect server serves them; elsewhere: `dankai approve`."""
    from prefect.deployments import run_deployment

    if settings.prefect_api_url is None:
        return
    for _, pending in waiting(ReleaseLog.open(settings)):
        # One run per request at a time: the same key finds the run that still asks, or said all it can.
        num_ended = 0 if pending.terms.needs_accounts else _num_ended(pending.id)
        try:
            run_deployment(
                DEPLOYMENT,
                parameters={"request": pending.id},
                timeout=0,
                idempotency_key=f"{pending.request}-{num_ended}",
                as_subflow=False,
                tags=[pending.id],
            )
        except ObjectNotFound:
            return


def _num_ended(request: str) -> int:
    """How many runs have asked for this request and are over."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[request])))
    return sum(run.state is not None and run.state.is_final() for run in runs)


def offer() -> RunnerDeployment:
    """The deployment of approvals, made known to the server, and a run for everything that waits now."""
    deployment = RunnerDeployment.from_flow(approval, name="approval")
    deployment.apply()
    ask_in_prefect(load_settings())
    return deployment


def serve() -> None:
    """Ask for everything that waits now, and run what people answer, until Ctrl-C."""
    from prefect import serve as serve_deployments

    serve_deployments(offer(), pause_on_shutdown=False)
