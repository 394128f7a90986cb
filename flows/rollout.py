"""The whole climb: data -> dense incumbent -> pilot -> training -> edge -> months of operation."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import artifacts, tasks
from flows.actors import who_runs
from flows.approval import ask_in_prefect
from flows.dask import spread_of
from flows.names import run_name
from flows.progress import progress
from flows.report import show_report
from pipelines.budgets import Calibration
from pipelines.checkpoint import Checkpoint
from pipelines.clock import now
from pipelines.cost import CostComparison
from pipelines.edge.bundle import Bundle
from pipelines.evaluation import Evaluation
from pipelines.fingerprint import environment
from pipelines.job import Job, Prepared, open_job
from pipelines.judging import LENGTHS, edge_kpis, values_side_by_side
from pipelines.release import champion_to_beat, refuse_without_bootstrap
from pipelines.release_log import Stage
from pipelines.replay import Month, replay_parts
from pipelines.report.leaving import leave_rollout
from pipelines.rollout import CLIMB, RolloutState, current_state
from pipelines.scoring import Scores
from pipelines.second_look import Lineup
from pipelines.settings import load_settings
from pipelines.summary import RolloutSummary, sentence_of, write_summary
from pipelines.tracking import link_docs
from pipelines.values import Values
from validation.gates import Outcome
from validation.gates import Stage as Gate

T = TypeVar("T")


@dataclass
class Climb:
    """What a rollout has gathered so far."""

    job: Job
    prepared: Prepared
    dense: Checkpoint
    dense_scores: Scores
    baselines: dict[str, Scores]
    evaluations: list[Evaluation] = field(default_factory=list)
    costs: list[CostComparison] = field(default_factory=list)
    calibration: Calibration | None = None
    bundle: Bundle | None = None
    months: list[Month] = field(default_factory=list)
    scored: dict[str, Scores] = field(default_factory=dict)
    """Scores of the test windows by models that may go live, by the SHA-256 of their weights."""

    @property
    def references(self) -> dict[str, Scores]:
        """What every candidate is compared with on the test windows."""
        return {"dense": self.dense_scores, "baseline": self.baselines["test"]}


@flow(name="rollout", flow_run_name=run_name, validate_parameters=False)
def rollout(
    dataset: str, policy: str, quiet: bool = False, bootstrap_reason: str | None = None
) -> State[RolloutSummary]:
    """Take a dataset's model as far up the stages as its gates allow; leaves summary.json and a bundle.

    `bootstrap_reason` is why the first model may go live, where nothing is live yet. The run's last state
    says in its name where the climb ended.
    """
    summary = run_rollout(dataset, policy, quiet, bootstrap_reason)
    return Completed(name=summary.ended, message=summary.sentence, data=summary)


def run_rollout(
    dataset: str, policy: str, quiet: bool, bootstrap_reason: str | None = None
) -> RolloutSummary:
    """The same inside another flow's run."""
    started = time.monotonic()
    with progress(quiet) as report:
        job = open_job(Path(dataset), Path(policy), load_settings(), report)
        refuse_without_bootstrap(job.log, job.spec.name, bootstrap_reason)
        with job.tracker.run(f"{job.spec.name} rollout", "rollout", start_tags(job)) as run_id:
            job = replace(job, parent_run=run_id, actor=who_runs(), spread=spread_of(job.settings))
            job = replace(job, report=artifacts.with_progress(job))
            climb = begin(job, bootstrap_reason)
            passed = in_stage(climb, "pilot", pilot)
            trained = in_stage(climb, "training", full_training) if passed else None
            if trained is not None and in_stage(climb, "edge", partial(edge, trained=trained)):
                in_stage(climb, "steady", partial(operate, champion=trained))
            ask_in_prefect(job.settings)
            summary = summarize(climb, time.monotonic() - started)
            path = write_summary(summary, job.settings.home)
            job.note(sentence=summary.sentence)
            job.tracker.log_artifact(run_id, path)
            tags = {"stage": summary.state.stage, "verdict": summary.verdict, "sentence": summary.sentence}
            job.tracker.log_tags(run_id, tags)
            artifacts.show_links(job, run_id)
            show_report(leave_rollout(job, summary, run_id))
    return summary


def start_tags(job: Job) -> dict[str, str]:
    """What the rollout's run in MLflow is found by, and what was put right in the registry at its start."""
    put_right = " / ".join(change.sentence() for change in job.alias_changes)
    return {"dataset": job.spec.name, **({"aliases_put_right": put_right} if put_right else {})}


def in_stage(climb: Climb, stage: str, work: Callable[[Climb], T]) -> T:
    """A stage in a run of its own in MLflow, inside the rollout's: what it trains and asks lies below it."""
    outer, before = climb.job, len(climb.evaluations)
    tags = {"dataset": outer.spec.name, "stage": stage}
    with outer.tracker.run(f"{outer.spec.name} {stage}", "stage", tags, outer.parent_run) as run_id:
        climb.job = replace(outer, parent_run=run_id)
        try:
            result = work(climb)
        finally:
            climb.job = outer
        verdicts = [each.verdict.outcome for each in climb.evaluations[before:]]
        outer.tracker.log_tags(run_id, {"verdict": str(verdicts[-1]) if verdicts else "none"})
    return result


def begin(job: Job, bootstrap_reason: str | None) -> Climb:
    """Data that may be trained on, the dense incumbent, and the simple baseline beside it."""
    snapshot = tasks.snapshot_data(job)
    report = tasks.validate_snapshot(job, snapshot)
    if job.parent_run is not None:
        link_docs(job, job.parent_run, report)
    prepared = tasks.prepare(job, snapshot, report)
    dense = tasks.train_candidate(job, prepared, "dense")
    baselines = {scores.part: scores for scores in tasks.score_baselines(job, prepared)}
    tasks.start_pilot(job, dense, bootstrap_reason)
    dense_scores = tasks.score(job, prepared, dense, "test", None, "dense")
    return Climb(job, prepared, dense, dense_scores, baselines, scored={dense.sha256: dense_scores})


def pilot(climb: Climb) -> bool:
    """Fit a selector to the frozen incumbent, let sparse inference answer in shadow, ask the gate."""
    job, prepared = climb.job, climb.prepared
    fitted = tasks.train_candidate(job, prepared, "selector", warm_start=climb.dense)
    climb.calibration = tasks.calibrate(job, prepared, fitted, climb.dense)
    shadow = tasks.score(job, prepared, fitted, "test", job.plan.target_density, "pilot")
    climb.costs = tasks.measure_costs(job, fitted, climb.dense, LENGTHS)
    measured = tasks.pilot_kpis(job, prepared, fitted, climb.costs)
    return judge(climb, "pilot", fitted, shadow, measured)


def full_training(climb: Climb) -> Checkpoint | None:
    """Train the sparse model end to end, twice, calibrate it, ask the gate; None if it may not go on."""
    job, prepared = climb.job, climb.prepared
    trained = [tasks.train_candidate(job, prepared, "sparse", seed) for seed in (0, 1)]
    scores = [
        tasks.score(job, prepared, each, "test", job.plan.target_density, f"sparse-seed{seed}")
        for seed, each in enumerate(trained)
    ]
    climb.calibration, _ = [tasks.calibrate(job, prepared, each, climb.dense) for each in trained]
    costs = tasks.measure_costs(job, trained[0], climb.dense, (1,))
    measured = tasks.training_kpis(job, prepared, trained[0], costs, scores)
    return trained[0] if judge(climb, "training", trained[0], scores[0], measured, trained) else None


def edge(climb: Climb, trained: Checkpoint) -> bool:
    """Export, sign, load and answer in the runtime that devices use, and ask the gate."""
    job, prepared = climb.job, climb.prepared
    verdict = climb.evaluations[-1].verdict.digest()
    climb.bundle = bundle = tasks.build_edge(job, prepared, trained, climb.calibration, verdict)
    answers = tasks.score_on_edge(job, prepared, bundle, "test")
    timings = tasks.measure_edge(job, bundle)
    measured = edge_kpis(prepared, bundle, timings, job.policy.confidence)
    return judge(climb, "edge", trained, answers, measured)


def operate(climb: Climb, champion: Checkpoint) -> None:
    """The months after the release, in order; drift that matters sends a challenger against the champion."""
    job, prepared = climb.job, climb.prepared
    released = tasks.score(job, prepared, champion, "test", job.plan.target_density, "sparse-seed0")
    challenger, months = None, replay_parts(job.windows(prepared))
    for month in months:
        has_next = month != months[-1]
        report, champion, challenger = tasks.replay_month(
            job,
            prepared,
            month,
            champion,
            challenger,
            released,
            climb.baselines[month],
            climb.dense,
            has_next,
            [each.drift for each in climb.months],
        )
        climb.months.append(report)
        if report.evaluation is not None:
            climb.evaluations.append(report.evaluation)
        if report.rolled_back is not None:
            return  # what is live now was not trained by this rollout's last step: a person looks first


def judge(
    climb: Climb,
    stage: Gate,
    candidate: Checkpoint,
    scores: Scores,
    measured: list,
    seeds: Sequence[Checkpoint] = (),
) -> bool:
    """Ask the gate, record its verdict in the release log; True when the climb may go on."""
    job, bundle = climb.job, climb.bundle if stage == "edge" else None
    # The edge gate asks about the live weights themselves, in another runtime: there is nobody to replace.
    champion = champion_to_beat(job, candidate) if bundle is None else None
    references = climb.references
    if champion is not None:
        references["champion"] = champion_scores(climb, champion)
        climb.scored[candidate.sha256] = scores
    evaluation = tasks.judge_stage(job, climb.prepared, stage, scores, references, measured)
    climb.evaluations.append(evaluation)
    artifacts.show_gate(job, evaluation)
    lineup = Lineup(
        candidate=candidate, dense=climb.dense, champion=champion, seeds=tuple(seeds), bundle=bundle
    )
    state = tasks.decide(job, lineup, evaluation.verdict, job.plan.target_density)
    return evaluation.verdict.outcome is Outcome.PASS and has_left(state, stage, candidate)


def champion_scores(climb: Climb, champion: Checkpoint) -> Scores:
    """What is live on the same windows: from this very climb where it was scored in it."""
    known = climb.scored.get(champion.sha256)
    return known or tasks.score_champion(climb.job, climb.prepared, champion, "test")


def has_left(state: RolloutState, stage: str, candidate: Checkpoint) -> bool:
    """Whether this very model took the rollout beyond a stage, and nothing took it back since.

    A PASS alone does not say so: it may wait for people, or date from before a demotion.
    """
    is_beyond = CLIMB.index(state.stage) > CLIMB.index(Stage(stage))
    return is_beyond and candidate.sha256 in {release.checkpoint for release in state.releases}


def how_good(climb: Climb) -> list[Values]:
    """The candidate of the last stage of the climb, and what it is compared with, in absolute terms."""
    climbed = [each.candidate for each in climb.evaluations if each.stage != "steady" and each.candidate]
    return values_side_by_side(climb.job, {"candidate": climbed[-1], **climb.references})


def summarize(climb: Climb, seconds: float) -> RolloutSummary:
    """Everything measured and decided, in one record."""
    job = climb.job
    state = current_state(job.log, job.spec.name)
    evaluations = tuple(climb.evaluations)
    return RolloutSummary(
        dataset=job.spec.name,
        description=job.spec.description,
        finished_at=now(),
        seconds=seconds,
        environment=environment(),
        policy=job.policy.digest(),
        min_timings=job.policy.min_timings,
        prepared=climb.prepared,
        evaluations=evaluations,
        how_good=tuple(how_good(climb)),
        costs=tuple(climb.costs),
        calibration=climb.calibration,
        bundle=climb.bundle,
        months=tuple(climb.months),
        state=state,
        sentence=sentence_of(evaluations, state),
    )
