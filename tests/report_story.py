"""A whole story without a training: every record that a page can show, with evil names where data may be."""

from functools import partial

import numpy as np

import validation.kpis
from pipelines.budgets import BudgetPoint, Calibration, Conditions, Cost
from pipelines.cost import CostComparison, Timings
from pipelines.evaluation import Evaluation
from pipelines.explaining import AskedBlock, Explanation, ReadBlock, ReadStep
from pipelines.fingerprint import Environment
from pipelines.payback import payback
from pipelines.release_log import Stage
from pipelines.report.story import Answer, Lineage, Period, Story, Trace, Which, WindowRead
from pipelines.rollout import Release, RolloutState
from pipelines.values import Values
from validation.drift import DriftReport
from validation.effects import Effect, Kind, Measure
from validation.evidence import Evidence
from validation.gates import StagePolicy, judge
from validation.kpis import Kpi
from validation.policy import CostPolicy
from validation.samples import ratio_interval
from validation.statistics import Interval
from validation.thresholds import Threshold

EVIL = "<script>alert('x')</script><img src=x onerror=alert(2)>&\u202e\"'`${1}"
OURS, DENSE, BASELINE, DATA = "a" * 64, "d" * 64, "b" * 64, "5" * 64
kpi = partial(validation.kpis.kpi, checkpoint=OURS, snapshot=DATA)
PRICES = CostPolicy(
    are_examples=True,
    currency="USD",
    price_per_gpu_hour=3,
    price_per_cpu_hour=0.05,
    price_per_device=500,
    device_memory_bytes=2**31,
    requests_per_day=1e7,
    engineering_cost=10_000,
)


def between(value: float, half: float, n: int = 240) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, n=n, confidence=0.95)


def versus(name: str, value: float, half: float, reference: str, of: float, **more: object) -> Kpi:
    about = {"dense": DENSE, "baseline": BASELINE}[reference]
    return kpi(
        name,
        between(value, half),
        versus=reference,  # type: ignore[arg-type]
        reference_value=of,
        reference_checkpoint=about,
        **more,  # type: ignore[arg-type]
    )


def evaluation(column: str = "site") -> Evaluation:
    """A pilot gate that holds: one ratio straddles its bound, one KPI was never measured."""
    groups = [
        versus("auroc", value, 0.02, "dense", 0.8, slice=f"{column}={group}", joint=between(value, 0.03))
        for value, group in ((0.004, "=SUM(A1)"), (-0.011, "south"), (0.001, EVIL))
    ]
    kpis = (
        kpi("auroc", between(0.78, 0.03)),
        versus("auroc", 0.002, 0.004, "dense", 0.778),
        versus("auroc", -0.004, 0.02, "baseline", 0.784),
        *groups,
        kpi("latency_p50_ratio", between(0.91, 0.01, 372)),
        kpi("latency_p99_ratio", between(1.05, 0.2, 372)),
        kpi("peak_memory_ratio", Interval(value=1.06, low=1.03, high=1.06, n=3)),
        kpi("payback_days", Interval(value=np.inf, low=900, high=np.inf, n=1, confidence=0.95)),
        kpi("error_rate", 0.0),
    )
    asked = [
        Threshold(kpi="task_metric", relative_margin=0.02, versus="dense"),
        Threshold(kpi="task_metric", relative_margin=0.02, versus="baseline"),
        Threshold(kpi="task_metric", relative_margin=0.1, versus="dense", slice="worst:*", min_group=30),
        Threshold(kpi="latency_p50_ratio", at_most=1.0),
        Threshold(kpi="latency_p99_ratio", at_most=1.0),
        Threshold(kpi="peak_memory_ratio", at_most=1.1),
        Threshold(kpi="payback_days", at_most=365, severity="dry_run"),
        Threshold(kpi="selection_recall", at_least=0.5),
    ]
    policy = StagePolicy.model_validate(
        {
            "stage": "pilot",
            "thresholds": asked,
            "serving": [Threshold(kpi="error_rate", at_most=0.0)],
            "min_windows": 30,
            "min_timings": 1,
            "min_processes": 3,
        }
    )
    evidence = Evidence(
        checkpoint=OURS,
        snapshot=DATA,
        task_metric="auroc",
        references={"dense": DENSE, "baseline": BASELINE},
        slices=(column,),
    )
    return Evaluation(stage="pilot", subject="pilot", kpis=kpis, verdict=judge(kpis, policy, evidence))


def how_good() -> tuple[Values, ...]:
    values = {"candidate": 0.78, "dense": 0.778, "baseline": 0.784}
    return tuple(
        Values(
            role=role,
            subject="pilot" if role == "candidate" else role,
            part="test",
            num_windows=240,
            metrics={"auroc": between(value, 0.03), "average_precision": between(value / 2, 0.02)},
        )
        for role, value in values.items()
    )


def costs() -> tuple[CostComparison, ...]:
    random, found = np.random.default_rng(0), []
    for steps, ours, theirs, count in (
        (2304, 36.0, 40.0, 60),
        (9216, 180.0, 370.0, 5),
        (36864, 3200.0, 5600.0, 1),
    ):
        sides = [
            Timings(
                subject=name,
                num_steps=steps,
                density=density,
                latency_ms=tuple(middle * random.lognormal(0, 0.05, count)),
                memory_bytes=(middle * 1e6 + 4e8,) * 3,
                device="cpu",
                threads=2,
            )
            for name, middle, density in (("candidate", ours, 0.125), ("dense", theirs, None))
        ]
        latency = [np.array(side.latency_ms) for side in sides]
        ratio = partial(ratio_interval, *latency, confidence=0.95, num_resamples=50, seed=0)
        memory = Interval(value=1.06, low=1.03, high=1.06, n=3)
        found.append(
            CostComparison(
                num_steps=steps,
                candidate=sides[0],
                dense=sides[1],
                latency_p50_ratio=ratio(quantile=0.5),
                latency_p99_ratio=ratio(quantile=0.99),
                peak_memory_ratio=memory,
            )
        )
    return tuple(found)


def calibration() -> Calibration:
    def cost(milliseconds: float, memory: float) -> Cost:
        return Cost(
            latency_p50_ms=between(milliseconds, 1, 40),
            latency_p90_ms=between(1.2 * milliseconds, 3, 40),
            peak_memory_bytes=Interval(value=memory, low=memory, high=memory, n=1),
        )

    points = [(0.0625, 3, 0.02, 30), (0.125, 5, 0.004, 36), (0.25, 9, 0.001, 41), (0.5, 18, -0.001, 55)]
    return Calibration(
        checkpoint=OURS,
        dense=DENSE,
        snapshot=DATA,
        num_windows=48,
        dense_metric=0.778,
        dense_cost=cost(40, 4.2e8),
        points=tuple(
            BudgetPoint(
                density=density,
                num_selected=blocks,
                metric="auroc",
                task_metric=0.778 * (1 - loss),
                loss=between(loss, 0.006, 48),
                cost=cost(milliseconds, 4e8 + 1e6 * milliseconds),
            )
            for density, blocks, loss, milliseconds in points
        ),
        conditions=Conditions(
            machine="a CPU", device="cpu", threads=2, num_steps=2304, num_timings=40, confidence=0.95
        ),
    )


def window(which: Which, loss: float, name: str = "load") -> WindowRead:
    """Two days of minutes in blocks of sixteen, of which every fifth was read."""
    random, num, size = np.random.default_rng(len(which)), 320, 16
    times = np.datetime64("2024-05-01") + np.arange(num) * np.timedelta64(9, "m")
    said = [str(each.astype("datetime64[s]")) for each in times]
    values = np.cumsum(random.normal(size=num))
    blocks = [
        ReadBlock(
            first=said[first].replace("T", " "),
            last=said[first + size - 1].replace("T", " "),
            mass=0.12 if first % 80 == 0 else 0.01,
            read_by=0.75 if first % 80 == 0 else 0.0,
        )
        for first in range(0, num, size)
    ]
    steps = [
        ReadStep(
            time=said[row].replace("T", " "),
            entity="pump",
            row=row,
            mass=0.05 - row / 8000,
            values={name: float(values[row]), "site": EVIL, "late": None},
        )
        for row in (3, 82, 165, 243)
    ]
    asked = AskedBlock(
        first=said[-16].replace("T", " "),
        last=said[-1].replace("T", " "),
        num_asked=16,
        exact_mass=0.55,
        steps=tuple(steps),
        blocks=tuple(each for each in blocks if each.read_by),
        only_summarized=tuple(each for each in blocks if not each.read_by),
    )
    return WindowRead(
        which=which,
        loss=loss,
        measure="log_loss",
        num_windows=240,
        explanation=Explanation(
            checkpoint=OURS, snapshot=DATA, density=0.125, entity="pump", cutoff=said[-1], blocks=(asked,)
        ),
        times=tuple(said),
        traces=(
            Trace(
                name=name,
                values=tuple(None if row % 40 == 7 else float(each) for row, each in enumerate(values)),
            ),
        ),
        answers=tuple(
            Answer(
                time=str(times[-1] + np.timedelta64(9 * (step + 1), "m").astype("timedelta64[s]")),
                score=float(random.uniform(0, 1)),
                truth=float(step % 9 == 0),
            )
            for step in range(48)
        ),
        output=name,
    )


def drift_report(strength: float, subject: str = "load") -> DriftReport:
    moved: tuple[tuple[Kind, str, Measure], ...] = (
        ("inputs", subject, "shift"),
        ("relations", "plan", "relation"),
        ("selection", "blocks read", "lags"),
    )
    effects = tuple(
        Effect(
            kind=kind,
            subject=name,
            measure=measure,
            value=0.1 * strength,
            usual=0.05,
            strength=strength / rank,
        )
        for rank, (kind, name, measure) in enumerate(moved, 1)
    )
    return DriftReport(
        decision="retrain" if strength > 3 else "none",
        reasons=("load moved",),
        num_rows_reference=9000,
        num_rows_batch=700,
        effects=effects,
        noted=effects[:2] if strength > 1 else (),
    )


def periods() -> tuple[Period, ...]:
    found = []
    for number, (value, strength, decision, event) in enumerate(
        (
            (0.79, 0.4, "none", ""),
            (0.77, 1.6, "watch", ""),
            (0.71, 4.2, "retrain", "trained"),
            (0.78, 0.8, "none", "promoted"),
        )
    ):
        found.append(
            Period(
                label=f"2024-0{number + 5}",
                time=f"2024-0{number + 5}",
                decision=decision,
                metric="auroc",
                value=between(value, 0.02),
                drift=drift_report(strength, EVIL if number == 3 else "load"),
                reasons=("load moved",),
                event=event,  # type: ignore[arg-type]
            )
        )
    return tuple(found)


def environment() -> Environment:
    empty = dict.fromkeys(("lock", "packages", "cuda", "gpu"), "")
    return Environment(
        code="c" * 64,
        git_commit="e" * 40,
        python="3.11",
        torch="2.13",
        platform="Linux",
        cpu="a CPU",
        num_cpus=2,
        **empty,
    )


def whole_story() -> Story:
    """A rollout that was held at the pilot gate, with months of operation before."""
    live = Release(stage=Stage.PILOT, champion=3, checkpoint=DENSE, snapshot=DATA)
    judged = evaluation()
    return Story(
        kind="rollout",
        dataset="pump",
        description=f"trips of one pump {EVIL}",
        task="event",
        finished_at="2026-11-26T05:00:00+00:00",
        seconds=251.0,
        outcome=judged.verdict.outcome.value,
        state=RolloutState(dataset="pump", releases=(live,)),
        environment=environment(),
        policy=judged.verdict.policy_digest,
        min_timings=20,
        density=0.125,
        evaluations=(judged,),
        how_good=how_good(),
        calibration=calibration(),
        costs=costs(),
        windows=(window("best", 0.04), window("typical", 0.21), window("worst", 0.93)),
        periods=periods(),
        payback=payback(costs()[0], PRICES, num_resamples=50),
        prices=PRICES,
        lineage=Lineage(
            snapshot=DATA,
            rows=336776,
            start="2013-01-01T05:15:00",
            end="2013-12-31T23:59:00",
            docs="datasets/pump/data_docs/index.html",
            run_id="0" * 32,
            run_url=f"http://127.0.0.1:5000/#/experiments/1/runs/{'0' * 32}",
            training_run="1" * 32,
            checkpoint=OURS,
            checkpoint_place="datasets/pump/checkpoints/pilot",
            verdict=judged.verdict.digest(),
            policy=judged.verdict.policy_digest,
        ),
    )


def bare_story(**changes: object) -> Story:
    """Of which next to nothing was measured."""
    plain = Story(
        kind="rollout",
        dataset="pump",
        description="trips of one pump",
        task="event",
        finished_at="2026-11-26T05:00:00+00:00",
        outcome="missing",
        state=RolloutState(dataset="pump"),
    )
    return plain.model_copy(update=changes)


def story_without_intervals() -> Story:
    """As `whole_story`, of too few windows for any interval."""
    story, none = whole_story(), {"low": np.nan, "high": np.nan}
    judged = story.evaluations[0]
    table = calibration()
    points = [each.model_copy(update={"loss": each.loss.model_copy(update=none)}) for each in table.points]
    values = [
        each.model_copy(update={"value": each.value and each.value.model_copy(update=none)})
        for each in periods()
    ]
    return story.model_copy(
        update={
            "evaluations": (
                judged.model_copy(update={"kpis": tuple(k.model_copy(update=none) for k in judged.kpis)}),
            ),
            "calibration": table.model_copy(update={"points": tuple(points)}),
            "periods": tuple(values),
        }
    )
