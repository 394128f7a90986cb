"""Each run leaves its page: report.html and report.json in its folder, the page and short form in MLflow."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipelines.files import replace_file
from pipelines.job import Job
from pipelines.mlflow_words import NOTE
from pipelines.monitor import MonitorReport, reports
from pipelines.report.brief import brief
from pipelines.report.compose import compose
from pipelines.report.html import html_of
from pipelines.report.story import FILE, PAGE, Story
from pipelines.report.telling import batch_folder, of_batch, of_retraining, of_rollout, retraining_folder
from pipelines.report.words import Language, Words, language_of
from pipelines.retraining import RetrainingReport, retrainings
from pipelines.summary import RolloutSummary
from validation.errors import InputError

logger = logging.getLogger(__name__)


class Left(NamedTuple):
    """What is told, where the page lies, and the same in a sentence and in short (Markdown)."""

    story: Story
    page: Path
    sentence: str
    in_short: str


def leave_rollout(job: Job, summary: RolloutSummary, run_id: str) -> Left:
    """In the home folder, beside summary.json."""
    return _leave(job, of_rollout(job, summary, run_id), job.settings.home, run_id)


def leave_retraining(job: Job, report: RetrainingReport) -> Left:
    """In a folder beside the retraining's record."""
    return _leave(job, of_retraining(job, report), retraining_folder(job, report), report.run_id)


def leave_batch(job: Job, report: MonitorReport) -> Left:
    """In a folder beside the batch's record."""
    return _leave(job, of_batch(job, report), batch_folder(job, report), report.run_id)


def leave_missing(job: Job) -> Iterator[Left]:
    """The pages of this dataset's retrainings and batches that were cut off after their record was kept.

    One that cannot be made, because what it tells of is gone, is warned of and holds nobody up.
    """
    name = job.spec.name
    ended = [each for each in retrainings(job.settings, name) if each.outcome != "unfinished"]
    due: list[tuple[Path, Callable[[], Left]]] = [
        (retraining_folder(job, each), partial(leave_retraining, job, each)) for each in ended
    ]
    due += [
        (batch_folder(job, each), partial(leave_batch, job, each)) for each in reports(job.settings, name)
    ]
    for folder, leave in due:
        if (folder / PAGE).exists():
            continue
        try:
            yield leave()
        except (InputError, OSError) as error:
            logger.warning("%s: no page can be made: %s", folder, error)


def write_page(story: Story, path: Path, language: Language) -> Path:
    """The page at `path`, whole or not at all."""
    replace_file(path, html_of(story, language).encode())
    return path


def _leave(job: Job, story: Story, folder: Path, run_id: str) -> Left:
    """The page lies in its folder last, so that one that lies there is whole in MLflow too."""
    with job.reporting("writing the report"), tempfile.TemporaryDirectory() as made:
        replace_file(folder / FILE, story.model_dump_json(indent=1).encode() + b"\n")
        page = compose(story, Words(language_of()))
        in_short = brief(page, _place(job, run_id, folder))
        written = write_page(story, Path(made) / PAGE, language_of())
        if run_id:
            job.tracker.log_artifact(run_id, written)
            job.tracker.log_tags(run_id, {NOTE: in_short})
        replace_file(folder / PAGE, written.read_bytes())
    sentence = f"{page.verdict.label}: {page.verdict.sentence}"
    return Left(story, folder / PAGE, sentence, in_short)


def _place(job: Job, run_id: str, folder: Path) -> str:
    """In MLflow's pages where a server shows them to everybody, else the file."""
    shared = job.tracker.page(run_id, artifact=PAGE) if run_id else None
    return shared or str(folder / PAGE)
