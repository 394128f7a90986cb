"""Names of flow runs that tell a story: whose data, what is done, and why."""

from pathlib import Path

from prefect.runtime import flow_run


def run_name() -> str:
    """`flights: monitor`, `flights: retrain, drift in ...`, from the run's own flow and parameters."""
    given = flow_run.parameters
    about = given.get("reason") or given.get("bootstrap_reason")
    why = f", {about[:80]}" if about else ""
    return f"{Path(given['dataset']).stem}: {flow_run.flow_name}{why}"
