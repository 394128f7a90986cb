"""The card of a registered model: what it is, on what data, how good, its limits, who let it in.

Written anew with every decision about a version: as the version's description in MLflow, as model_card.md in
the run that trained it, and below DANKAI_HOME. Everything in it is read from records; nothing is promised.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from pipelines.check_rows import row_of
from pipelines.checkpoint import Checkpoint
from pipelines.clock import now, to_the_minute
from pipelines.data.spec import DatasetSpec
from pipelines.escaping import markdown
from pipelines.files import replace_file
from pipelines.job import Job, dataset_folder
from pipelines.registry import registered_name
from pipelines.release_log import ReleaseEntry
from validation.gates import Outcome, Verdict

FILE = "model_card.md"


def publish(job: Job, version: int, checkpoint: Checkpoint, verdict: Verdict | None) -> Path:
    """Write a version's card; `verdict` is the last gate's, None where no gate was asked yet."""
    entries = [
        entry
        for entry in job.log.entries()
        if (entry.decision.dataset, entry.decision.version) == (job.spec.name, version)
    ]
    text = card(job.spec, version, checkpoint, verdict, entries)
    path = dataset_folder(job.settings, job.spec.name) / "model_cards" / f"version-{version}" / FILE
    replace_file(path, text.encode())
    job.tracker.describe_version(registered_name(job.spec.name), version, text)
    job.tracker.log_artifact(checkpoint.run_id, path)
    return path


def card(
    spec: DatasetSpec,
    version: int,
    checkpoint: Checkpoint,
    verdict: Verdict | None,
    entries: Iterable[ReleaseEntry],
) -> str:
    """The card as Markdown."""
    parts = (
        [
            f"# {registered_name(spec.name)}, version {version}",
            f"Written {to_the_minute(now())} UTC.",
        ],
        _what(spec, checkpoint),
        _data(spec, checkpoint),
        _how_good(verdict),
        _limits(spec, verdict),
        _who(entries),
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _what(spec: DatasetSpec, checkpoint: Checkpoint) -> Iterator[str]:
    config = checkpoint.config
    ways = {
        "dense": "a dense encoder, every block read: the incumbent",
        "selector": "a dense encoder whose weights are frozen, with a selector fitted to it",
        "sparse": "a sparse encoder, trained end to end with its selector",
        "adapt": "a sparse encoder whose selector and head were trained anew for this data",
    }
    yield "## What it is"
    yield f"- {ways[checkpoint.mode]}; task: {spec.task} of {_names(spec.target)}"
    yield (
        f"- layers: {config['num_layers']}, width {config['width']}, {config['num_heads']} heads, blocks of "
        f"{config['block_size']} steps; looks back {spec.lookback:,} steps"
        + (f" and ahead {spec.horizon:,}" if spec.horizon else "")
    )
    yield (
        f"- trained {checkpoint.num_steps} steps in {checkpoint.train_seconds:.0f} s by "
        f"{markdown(checkpoint.account) or 'an unknown account'}, seed {checkpoint.seed}; weights "
        f"`{checkpoint.sha256[:12]}`, plan `{checkpoint.plan[:12]}`, run `{checkpoint.run_id}`"
    )


def _data(spec: DatasetSpec, checkpoint: Checkpoint) -> Iterator[str]:
    known = f"; known in advance: {_names(spec.known_future)}" if spec.known_future else ""
    yield "## On what data"
    yield f"- {markdown(spec.description)}; snapshot `{checkpoint.snapshot[:12]}`"
    yield f"- reads {_names((*spec.numeric, *spec.categorical))}{known}"
    split = spec.split
    validation, test = _boundary(split.validation), _boundary(split.test)
    yield f"- trained before {validation}, stopped by what lies up to {test}, judged after it"


def _boundary(boundary: datetime | float) -> str:
    return f"{boundary:%Y-%m-%d}" if isinstance(boundary, datetime) else f"{boundary:.0%} of each series"


def _how_good(verdict: Verdict | None) -> Iterator[str]:
    yield "## How good, with intervals"
    if verdict is None:
        yield "No gate was asked: it is live, or on trial, by a person's word or a retraining alone."
        return
    judged = to_the_minute(verdict.evidence.judged_at or "")
    yield f"{verdict.stage} gate, {judged} UTC: **{verdict.outcome}** (verdict `{verdict.digest()[:12]}`)"
    yield ""
    yield "| KPI | value [interval] | asked | verdict |"
    yield "|---|---|---|---|"
    for check in verdict.checks:
        row = row_of(verdict.stage, check)
        yield f"| {markdown(row.kpi)} | {row.value} | {row.threshold} | {row.verdict} |"


def _limits(spec: DatasetSpec, verdict: Verdict | None) -> Iterator[str]:
    yield "## Limits"
    yield "- categories, machines and values that the training part did not hold count as unknown"
    if spec.ranges or spec.allowed:
        yield "- values outside the dataset file's ranges count as unknown too"
    if spec.task == "detect":
        yield "- an anomaly that was in the training part is taken for usual"
    checks = verdict.checks if verdict else ()
    for check in checks:
        if check.outcome is not Outcome.PASS or check.severity != "required":
            because = f": {check.reason}" if check.outcome is not Outcome.PASS else ", and passed"
            yield f"- {check.severity.replace('_', ' ')} check {check.kpi}{markdown(because)}"
    for name, reason in (verdict.evidence.not_comparable if verdict else {}).items():
        yield f"- not compared with {name}: {markdown(reason)}"


def _who(entries: Iterable[ReleaseEntry]) -> Iterator[str]:
    yield "## Who let it in"
    yield "The release log's entries about this version; `dankai audit verify` says whether it holds."
    yield ""
    yield "| when (UTC) | decision | from, to | who | why |"
    yield "|---|---|---|---|---|"
    for entry in entries:
        decision = entry.decision
        who = f"{decision.actor} ({decision.account})" if decision.account else decision.actor
        automatic = ", automatic" if decision.automatic else ""
        yield (
            f"| {to_the_minute(entry.time)} | {decision.action} | {decision.from_stage}, "
            f"{decision.to_stage} | {markdown(who)}{automatic} | {markdown(decision.reason)} |"
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(markdown, names))
