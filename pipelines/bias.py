"""Bias watch: how good the live model is for every group, batch after batch, and what it misses of each."""

from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import Windows
from pipelines.evaluation import groups_of
from pipelines.explaining import missed_mass_kpis
from pipelines.job import Job
from pipelines.scoring import Scores
from validation.kpis import Kpi


def watch_groups(
    job: Job, champion: Checkpoint, windows: Windows, part: str, scores: Scores, has_outcomes: bool
) -> tuple[Kpi, ...]:
    """Of every group of every slice column: the task metric with its interval, and the attention missed.

    With them the largest gap between two groups of a column that have the policy's `min_windows`. The metric
    takes outcomes, the missed attention a model that does not read everything.
    """
    if not job.spec.slices:
        return ()
    density = job.plan.target_density
    groups = groups_of(scores, job.spec, job.policy, job.policy.min_windows) if has_outcomes else []
    missed = missed_mass_kpis(champion, windows, part, density, job.policy, job.report) if density < 1 else []
    return (*groups, *missed)
