"""Thin Prefect tasks around the plain functions: a name, and no second cache beside pipelines.steps."""

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipelines import calibration, candidates, judging, preparation, release, replay
from pipelines.evaluation import Evaluation
from pipelines.job import Job, Prepared
from validation.gates import Stage


def _task(function: Callable[..., Any], name: str, run: str | None = None) -> Callable[..., Any]:
    """Finished steps are remembered by content hash (pipelines.steps): a kill -9 loses at most one.

    `run` names each run by its arguments, so that the list of a flow's runs reads as a story.
    """
    return task(name=name, task_run_name=run or name, cache_policy=NO_CACHE, persist_result=False)(function)


@task(name="gate", task_run_name="{stage} gate", cache_policy=NO_CACHE, persist_result=False)
def _gate(job: Job, prepared: Prepared, stage: Stage, *about: Any) -> State[Evaluation]:
    """Its last state is called PASS, HOLD or FAIL."""
    evaluation = judging.judge_stage(job, prepared, stage, *about)
    verdict = evaluation.verdict
    said = "; ".join(verdict.reasons) or "every required check passed"
    return Completed(name=str(verdict.outcome), message=said, data=evaluation)


def judge_stage(job: Job, prepared: Prepared, stage: Stage, *about: Any) -> Evaluation:
    """A stage's gate, asked in a task (see pipelines.judging)."""
    return _gate(job, prepared, stage, *about).result()  # type: ignore[return-value]  # the state itself comes


snapshot_data = _task(preparation.snapshot_data, "snapshot")
validate_snapshot = _task(preparation.validate_snapshot, "validate data")
prepare = _task(preparation.prepare, "prepare")
train_candidate = _task(candidates.train_candidate, "train", "train {mode}, seed {seed}")
score = _task(judging.score, "score", "score {subject} on {part}")
score_baselines = _task(judging.score_baselines, "baseline")
score_champion = _task(judging.score_champion, "score champion", "score the champion on {part}")
measure_costs = _task(judging.measure_costs, "measure cost")
pilot_kpis = _task(judging.pilot_kpis, "pilot KPIs")
training_kpis = _task(judging.training_kpis, "training KPIs")
calibrate = _task(calibration.calibrate, "calibrate budgets")
build_edge = _task(judging.build_edge, "build bundle")
score_on_edge = _task(judging.score_on_edge, "score on edge", "answer in the edge runtime, {part}")
measure_edge = _task(judging.measure_edge, "measure edge")
start_pilot = _task(release.start_pilot, "bootstrap")
decide = _task(release.decide, "decide")
replay_month = _task(replay.replay_month, "replay month", "operate {month}")
