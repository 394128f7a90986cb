"""Once a month everything is measured and judged as on the first day."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.monitor import open_flow_job
from flows.names import run_name
from flows.rollout import run_rollout
from pipelines.job import training_turn


@flow(name="full evaluation", flow_run_name=run_name)
def full_evaluation(dataset: str, policy: str) -> State[str]:
    """Run the rollout again: what is older than the policy allows is measured anew, and every gate asked.

    What is live stays live until a gate, or a person where the policy asks for one, says otherwise.
    """
    job = open_flow_job(dataset, policy)
    with training_turn(job.settings, job.spec.name):
        summary = run_rollout(dataset, policy, quiet=True)  # in this run: it acts for this deployment
    return Completed(name=summary.ended, message=summary.sentence)
