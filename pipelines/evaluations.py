"""Evaluations as MLflow keeps them: a run each, with evaluation.json; found by candidate, run or verdict."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipelines.escaping import markdown
from pipelines.evaluation import Evaluation
from pipelines.job import Job
from pipelines.mlflow_words import NOTE
from pipelines.registry import Tracker
from pipelines.scoring import Scores
from validation.errors import InputError
from validation.evidence import Look
from validation.gates import Stage
from validation.kpis import Kpi

KIND = "evaluation"
FILE = "evaluation.json"
_DIGEST_TAG = "verdict_digest"
_CONTENT_TAG = "evaluation_digest"
_FEWEST = 6  # characters of a digest that may stand for it


class Stored(NamedTuple):
    """An evaluation and the MLflow run that holds it."""

    run_id: str
    dataset: str
    evaluation: Evaluation


def track(job: Job, evaluation: Evaluation, is_confirmation: bool) -> str:
    """Keep an evaluation in MLflow; id of its run."""
    verdict = evaluation.verdict
    why = "; ".join(verdict.reasons) or "every required check passed"
    tags = {
        "dataset": job.spec.name,
        "stage": evaluation.stage,
        "verdict": verdict.outcome,
        "checkpoint": verdict.evidence.checkpoint,
        "policy": verdict.policy_digest,
        "confirmation": str(is_confirmation).lower(),
        NOTE: f"**{verdict.outcome}**: {markdown(why)}",
        _DIGEST_TAG: verdict.digest(),
        _CONTENT_TAG: evaluation.digest(),
    }
    job.note(stage=evaluation.stage, verdict=verdict.outcome, reasons=verdict.reasons)
    name = f"{job.spec.name} {evaluation.stage} gate: {verdict.outcome}"
    with job.tracker.run(name, KIND, tags, job.parent_run) as run_id:
        job.tracker.log_dataset(run_id, job.spec.name, verdict.evidence.snapshot, job.spec.file, KIND)
        job.tracker.log_metrics(run_id, {_metric_name(each): each.value for each in evaluation.kpis})
        job.tracker.log_dict(run_id, evaluation.model_dump(mode="json"), FILE)
    return run_id


def _metric_name(measured: Kpi) -> str:
    name = f"{measured.name}_vs_{measured.versus}" if measured.versus else measured.name
    return f"{name}/{measured.slice}" if measured.slice else name


def earlier_looks(job: Job, stage: Stage, candidate: Scores) -> list[Look]:
    """The looks that a stage's gate had at these weights, oldest first; confirmations spend nothing.

    By the release log: what MLflow keeps of them can be deleted there.
    """
    asked = (job.spec.name, candidate.scored, stage)
    looks: dict[str, Look] = {}
    for decision in (entry.decision for entry in job.log.entries()):
        looked = decision.looked
        if looked and not decision.request and (decision.dataset, decision.checkpoint, looked.gate) == asked:
            looks.setdefault(looked.look.evidence, looked.look)
    return list(looks.values())


def stored_evaluations(
    tracker: Tracker, dataset: str | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Stored]:
    """Every evaluation that carries these tags, oldest first."""
    wanted = {"kind": KIND, **({"dataset": dataset} if dataset else {}), **(tags or {})}
    for run in tracker.find_runs(wanted):
        yield _load(tracker, run.info.run_id, run.data.tags)


def find_evaluation(tracker: Tracker, name: str) -> Stored:
    """The evaluation of an MLflow run's id, or of the first characters of a verdict's digest.

    Raises InputError where nothing, or more than one verdict, is called so.
    """
    if len(name) < _FEWEST or not all(letter in "0123456789abcdef" for letter in name):
        raise InputError(
            f"{name!r}: give an evaluation's run id, or {_FEWEST} or more characters of a verdict's digest"
        )
    runs = tracker.find_runs({"kind": KIND})
    found = [
        run for run in runs if run.info.run_id == name or run.data.tags.get(_DIGEST_TAG, "").startswith(name)
    ]
    digests = {run.data.tags.get(_DIGEST_TAG) for run in found}
    if len(digests) > 1:
        raise InputError(f"{name}: {len(digests)} verdicts start so; give more characters")
    if not found:
        raise InputError(
            f"{name}: none of {len(runs)} evaluations has this run id or verdict digest{_last(runs)}"
        )
    return _load(tracker, found[-1].info.run_id, found[-1].data.tags)


def _last(runs: list) -> str:
    return f"; the last is {runs[-1].info.run_id}" if runs else "; run a rollout first"


def _load(tracker: Tracker, run_id: str, tags: Mapping[str, str]) -> Stored:
    content = tracker.load_dict(run_id, FILE)
    # What lies there is summed, not what is read of it: a newer dankai may know more fields.
    verdict, whole = _sha256(content.get("verdict")), _sha256(content)
    if verdict != tags.get(_DIGEST_TAG) or whole != tags.get(_CONTENT_TAG, whole):
        raise InputError(
            f"run {run_id}: {FILE} is not what was judged: it was edited; restore it or delete the run"
        )
    try:
        return Stored(run_id, tags.get("dataset", ""), Evaluation.model_validate(content))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise InputError(
            f"run {run_id}: {FILE} was written by another version of dankai or altered ({reason})"
        ) from None


def _sha256(content: Any) -> str:
    """As Record.digest sums what it holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
