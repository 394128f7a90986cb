"""Approval in Prefect's UI: a suspended run per request, resumed with a typed answer.

`dankai approvals` serves it. Prefect's open-source server knows no accounts, so an answer given there
carries a name and no account; where names must be proven, approve on the command line.
"""

from prefect import flow
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from pipelines.actors import Actor, refuse_unusable_name
from pipelines.approvals import find_request, waiting_sentence
from pipelines.release import answer_request
from pipelines.release_log import ReleaseLog
from pipelines.settings import load_settings

DEPLOYMENT = "approval/approval"


class Answer(RunInput):
    """What the person who resumes the run fills in."""

    name: str = Field(description="Who you are; kept in the release log")
    approve: bool = Field(description="Let this version in, or decline it")
    reason: str = Field(description="Why; kept in the release log")


@flow(name="approval", flow_run_name="approve {request}?")
def approval(request: str) -> str:
    """Suspend until somebody answers; then record the answer, judge again, and say what came of it."""
    settings = load_settings()
    state, pending = find_request(ReleaseLog.open(settings), request)
    asked = waiting_sentence(state, pending)
    answer = suspend_flow_run(
        wait_for_input=Answer.with_initial_data(description=asked), timeout=None, key=f"answer-{request}"
    )
    refuse_unusable_name(answer.name.strip())
    person = Actor(name=answer.name.strip())
    after = answer_request(settings, request, person, answer.reason, answer.approve, lambda *_: None)
    return f"{after.dataset}: stage {after.stage}, version {after.champion} is live"


def ask_in_prefect(request: str) -> None:
    """Start the run that asks, where a Prefect server serves it; elsewhere there is `dankai approve`."""
    from prefect.deployments import run_deployment

    if load_settings().prefect_api_url is None:
        return
    try:
        run_deployment(
            DEPLOYMENT, parameters={"request": request}, timeout=0, idempotency_key=request, as_subflow=False
        )
    except ObjectNotFound:
        return


def serve() -> None:
    """Ask for everything that waits now, and run what people answer, until Ctrl-C."""
    approval.serve(name="approval", pause_on_shutdown=False)
