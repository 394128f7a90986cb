"""The models of a rollout: each trained once per content of its inputs, and tracked."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.actors import account_name
from pipelines.checkpoint import Checkpoint
from pipelines.data.spec import DatasetSpec
from pipelines.data.windows import Windows
from pipelines.escaping import markdown
from pipelines.job import Job, Prepared
from pipelines.registry import ModelVersion, Tracker
from pipelines.training_plan import Mode, TrainingPlan

if TYPE_CHECKING:
    from pipelines.training import Curve, Follow


def train_candidate(
    job: Job,
    prepared: Prepared,
    mode: Mode,
    seed: int = 0,
    *,
    warm_start: Checkpoint | None = None,
    plan: TrainingPlan | None = None,
    spec: DatasetSpec | None = None,
) -> Checkpoint:
    """A trained model, tracked in MLflow; from the store when these inputs were trained on before."""
    plan, spec = plan or job.plan, spec or job.spec
    inputs = {
        "prepared": prepared,
        "mode": mode,
        "seed": seed,
        "plan": plan,
        "model": spec.model,
        "split": spec.split,
        "start": warm_start.sha256 if warm_start else "",
    }
    name = f"train-{mode}-seed{seed}"

    def compute() -> Checkpoint:
        from pipelines.steps import step_key

        folder = job.folder / "models" / f"{mode}-seed{seed}-{step_key(name, inputs)[:12]}"
        return _train_tracked(job, prepared, spec, plan, mode, seed, warm_start, folder)

    return job.once(name, inputs, Checkpoint, compute)


def _train_tracked(
    job: Job,
    prepared: Prepared,
    spec: DatasetSpec,
    plan: TrainingPlan,
    mode: Mode,
    seed: int,
    warm_start: Checkpoint | None,
    folder: Path,
) -> Checkpoint:
    from pipelines.training import train

    windows = job.windows(prepared, spec)
    tags = {"dataset": spec.name, "mode": mode, "seed": str(seed)}
    with job.tracker.run(f"{spec.name} {mode} seed {seed}", "training", tags, job.parent_run) as run_id:
        config = model_config(windows, spec)
        job.tracker.log_params(run_id, {"plan": plan.model_dump(mode="json"), "model": config.to_dict()})
        snapshot = prepared.snapshot
        job.tracker.log_dataset(run_id, spec.name, snapshot.content_hash, snapshot.uri, "training")
        follow = following(job.tracker, run_id, f"{mode} (seed {seed})", job.note)
        checkpoint, curve = train(windows, config, plan, mode, seed, folder, job.report, warm_start, follow)
        follow(curve)
        for path in checkpoint.artifact_paths():
            job.tracker.log_artifact(run_id, Path(path), "checkpoint")
        job.tracker.log_figure(run_id, learning_curve(curve, f"{spec.name}: {mode}"), "learning_curve.png")
    return checkpoint.model_copy(update={"run_id": run_id, "account": account_name()})


def following(
    tracker: Tracker, run_id: str, whose: str = "", note: Callable[..., None] = lambda **_: None
) -> "Follow":
    """Logs what a growing curve gained since it was last told, and notes where it stands.

    A training that goes on after a kill does so in a run of its own, which gets the whole curve: every run
    has one point per step, and the killed one keeps what it had.
    """
    told: dict[str, int] = {}

    def follow(curve: "Curve") -> None:
        steps: dict[int, dict[str, float]] = {}
        for metric, points in curve.items():
            for step, value in points[told.get(metric, 0) :]:
                steps.setdefault(step, {})[metric] = value
            told[metric] = len(points)
        tracker.log_series(run_id, sorted(steps.items()))
        note(losses={name: points[-1][1] for name, points in curve.items() if points}, whose=whose)

    return follow


def model_config(windows: Windows, spec: DatasetSpec) -> Any:
    """Shape of the model for these columns, with what the dataset file asks for. Raises InputError."""
    from sparse_model.config import ModelConfig

    try:
        return ModelConfig(
            num_numeric=len(windows.numeric_names),
            cardinalities=windows.cardinalities,
            num_outputs=windows.num_outputs,
            task=spec.task,
            **spec.model.model_dump(exclude_none=True),
        )
    except ValueError as error:
        raise spec.refuse("model", str(error)) from None


def learning_curve(curve: dict[str, list[tuple[int, float]]], title: str) -> Any:
    """Losses by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("train_loss", "validation_loss", "selector_divergence"):
        if name in curve:
            axes.plot(*zip(*curve[name], strict=True), label=name.replace("_", " "))
    axes.set(title=title, xlabel="optimiser step", ylabel="loss")
    axes.legend()
    return figure


def register(job: Job, checkpoint: Checkpoint, stage: str, density: float | None) -> ModelVersion:
    """The checkpoint as a version of the dataset's registered model; the same one when asked again."""
    return job.tracker.register_version(
        job.spec.name,
        checkpoint.weights,
        checkpoint.weights.with_name("config.json"),
        checkpoint.sha256,
        checkpoint.snapshot,
        checkpoint.run_id,
        density=density or 0.0,
        tags={"stage": stage, "mode": checkpoint.mode, "seed": str(checkpoint.seed)},
        description=f"{markdown(job.spec.description)} Trained {checkpoint.mode}, seed {checkpoint.seed}.",
    )
