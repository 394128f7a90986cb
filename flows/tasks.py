"""Thin Prefect tasks around the plain functions: a name, and no second cache beside pipelines.steps."""

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from pipelines import calibration, candidates, judging, preparation, release, replay


def _task(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Finished steps are remembered by content hash (pipelines.steps): a kill -9 loses at most one."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False)(function)


snapshot_data = _task(preparation.snapshot_data, "snapshot")
validate_snapshot = _task(preparation.validate_snapshot, "validate data")
prepare = _task(preparation.prepare, "prepare")
train_candidate = _task(candidates.train_candidate, "train")
score = _task(judging.score, "score")
score_baselines = _task(judging.score_baselines, "baseline")
score_champion = _task(judging.score_champion, "score champion")
measure_costs = _task(judging.measure_costs, "measure cost")
pilot_kpis = _task(judging.pilot_kpis, "pilot KPIs")
training_kpis = _task(judging.training_kpis, "training KPIs")
calibrate = _task(calibration.calibrate, "calibrate budgets")
judge_stage = _task(judging.judge_stage, "gate")
build_edge = _task(judging.build_edge, "build bundle")
score_on_edge = _task(judging.score_on_edge, "score on edge")
measure_edge = _task(judging.measure_edge, "measure edge")
start_pilot = _task(release.start_pilot, "bootstrap")
decide = _task(release.decide, "decide")
replay_month = _task(replay.replay_month, "replay month")
