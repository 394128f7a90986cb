"""Each run leaves its page: report.html and report.json in its folder, the page in its MLflow run too."""

from pathlib import Path
from typing import NamedTuple

from pipelines.files import replace_file
from pipelines.job import Job
from pipelines.monitor import MonitorReport
from pipelines.report.html import html_of
from pipelines.report.story import FILE, PAGE, Story
from pipelines.report.telling import batch_folder, of_batch, of_retraining, of_rollout, retraining_folder
from pipelines.report.words import Language, language_of
from pipelines.retraining import RetrainingReport
from pipelines.summary import RolloutSummary


class Left(NamedTuple):
    """What is told, and where the page lies."""

    story: Story
    page: Path


def leave_rollout(job: Job, summary: RolloutSummary, run_id: str) -> Left:
    """In the home folder, beside summary.json."""
    return _leave(job, of_rollout(job, summary, run_id), job.settings.home, run_id)


def leave_retraining(job: Job, report: RetrainingReport) -> Left:
    """In a folder beside the retraining's record."""
    return _leave(job, of_retraining(job, report), retraining_folder(job, report), report.run_id)


def leave_batch(job: Job, report: MonitorReport) -> Left:
    """In a folder beside the batch's record."""
    return _leave(job, of_batch(job, report), batch_folder(job, report), report.run_id)


def write_page(story: Story, path: Path, language: Language) -> Path:
    """The page at `path`, whole or not at all."""
    replace_file(path, html_of(story, language).encode())
    return path


def _leave(job: Job, story: Story, folder: Path, run_id: str) -> Left:
    with job.reporting("writing the report"):
        replace_file(folder / FILE, story.model_dump_json(indent=1).encode() + b"\n")
        page = write_page(story, folder / PAGE, language_of())
        if run_id:
            job.tracker.log_artifact(run_id, page)
    return Left(story, page)
