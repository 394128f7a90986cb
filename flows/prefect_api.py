"""The few questions that the command line asks a Prefect server, without importing Prefect (a second)."""

import json
import urllib.request
from typing import Any

from pipelines.addresses import request_to

TIMEOUT_S = 1.0


def ask(api: str, path: str, content: dict[str, Any] | None = None) -> Any:
    """The JSON answer of GET, or with `content` of POST, `path` below `api`. Raises OSError or ValueError."""
    body = None if content is None else json.dumps(content).encode()
    request = request_to(f"{api.rstrip('/')}/{path}", body)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.loads(answer.read() or b"null")


def next_run(api: str) -> tuple[str, str] | None:
    """Deployment and ISO time of the run that is due next; None where nothing is scheduled."""
    waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    order = {"sort": "EXPECTED_START_TIME_ASC", "limit": 1}
    runs = ask(api, "flow_runs/filter", {**waiting, **order})
    if not runs:
        return None
    deployment = runs[0].get("deployment_id")
    name = ask(api, f"deployments/{deployment}")["name"] if deployment else runs[0]["name"]
    return name, runs[0]["expected_start_time"]
