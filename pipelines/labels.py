"""Outcomes that arrive later than their rows: matched to them; the live model is then judged by them."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.batches import Batch, batches, keep_batch, outcome_columns, read_rows, rows_of
from pipelines.files import exclusive_lock, sha256_of
from pipelines.job import Job, dataset_folder
from pipelines.monitor import MonitorReport, look_again
from validation.record import Record

if TYPE_CHECKING:
    import polars as pl

REASON = "quarantine_reason"


class LabelsReport(Record):
    """What became of the rows of one file of outcomes; every row is one of the four."""

    dataset: str
    source: str
    num_new: int
    """Outcomes that were unknown until now."""
    num_repeated: int
    """Outcomes that were known, and the same."""
    num_unknown: int
    """Of rows that no batch holds."""
    num_contradicting: int
    """Other than what is known: the first word stands until a person decides."""
    quarantine: str | None
    """File of the unknown and contradicting rows, with the reason."""
    monitored: tuple[MonitorReport, ...] = ()
    """The batches whose outcomes came, looked at again."""


def attach_labels(job: Job, path: Path) -> LabelsReport:
    """Match the outcomes at `path` with rows of earlier batches, and look at those batches again.

    A row is known by its entity, time and the columns known in advance (`known_future`); several that agree
    in all of these, by their order. Raises InputError for a file that cannot be read, and for a dataset
    whose rows carry no time.
    """
    if job.spec.time is None:
        raise job.spec.refuse(
            "time", "rows without a time of their own cannot be matched: send labels with them"
        )
    with exclusive_lock(dataset_folder(job.settings, job.spec.name) / "monitor.lock"):
        believed = batches(job.settings, job.spec.name)
        matched = _matched(job, _keyed(job, _read(job, path)), believed)
        monitored = tuple(_filled(job, batch, matched) for batch in _touched(believed, matched))
        counts = dict(matched["fate"].value_counts().iter_rows())
        return LabelsReport(
            dataset=job.spec.name,
            source=str(path),
            num_new=counts.get("new", 0),
            num_repeated=counts.get("repeated", 0),
            num_unknown=counts.get("unknown", 0),
            num_contradicting=counts.get("contradicting", 0),
            quarantine=_set_aside(job, path, matched),
            monitored=monitored,
        )


def _read(job: Job, path: Path) -> "pl.DataFrame":
    """Key columns and outcomes alone; everything else in the file is left out."""
    spec = job.spec
    ahead = set(spec.known_future)
    keys = {
        "numeric": tuple(name for name in spec.numeric if name in ahead),
        "categorical": tuple(name for name in spec.categorical if name in ahead),
        "late": None,
        "slices": (),
    }
    known_at = (spec.target_known_at,) if spec.target_known_at else ()
    return read_rows(path, spec.model_copy(update=keys), may_lack=known_at)


def _key(job: Job) -> list[str]:
    features = (*job.spec.numeric, *job.spec.categorical)
    return ["entity", "time", *(name for name in features if name in job.spec.known_future)]


def _outcome(job: Job) -> str:
    return job.spec.label or job.spec.target[0]


def _keyed(job: Job, rows: "pl.DataFrame") -> "pl.DataFrame":
    """With the number of the row among those that agree in the whole key."""
    import polars as pl

    return rows.with_columns(twin=pl.int_range(pl.len()).over(_key(job)))


def _matched(job: Job, labels: "pl.DataFrame", believed: list[Batch]) -> "pl.DataFrame":
    """Every label with the batch and row it belongs to, what is known there, and its fate."""
    import polars as pl

    parts = [
        rows_of(job.settings, batch)
        .with_row_index("row")
        .select("row", *_key(job), known=pl.col(_outcome(job)), batch=pl.lit(batch.content_hash))
        for batch in believed
    ]
    empty = labels.select(*_key(job)).clear().with_columns(known=pl.lit(None, pl.Float64), batch=pl.lit(""))
    known = _keyed(job, pl.concat(parts) if parts else empty.with_row_index("row"))
    said = pl.col(_outcome(job))
    fate = (
        pl.when(pl.col("batch").is_null())
        .then(pl.lit("unknown"))
        .when(pl.col("known").is_null())
        .then(pl.lit("new"))
        .when(pl.col("known") == said)
        .then(pl.lit("repeated"))
        .otherwise(pl.lit("contradicting"))
    )
    joined = labels.join(known, on=[*_key(job), "twin"], how="left", nulls_equal=True)
    return joined.filter(said.is_not_null()).with_columns(fate=fate)


def _touched(believed: list[Batch], matched: "pl.DataFrame") -> list[Batch]:
    hashes = set(matched.filter(matched["fate"] == "new")["batch"])
    return [batch for batch in believed if batch.content_hash in hashes]


def _filled(job: Job, batch: Batch, matched: "pl.DataFrame") -> MonitorReport:
    """Write the new outcomes into the batch's rows; how the batch looks now."""
    import polars as pl

    new = matched.filter((pl.col("fate") == "new") & (pl.col("batch") == batch.content_hash))
    names = [name for name in outcome_columns(job.spec) if name in new.columns]
    rows = rows_of(job.settings, batch).with_row_index("row")
    filled = rows.join(new.select("row", *names), on="row", how="left", suffix="_new", maintain_order="left")
    merged = [pl.coalesce(f"{name}_new", name).cast(rows.schema[name]).alias(name) for name in names]
    keep_batch(job.settings, batch, filled.with_columns(merged).select(rows.columns).drop("row"))
    return look_again(job, batch)


def _set_aside(job: Job, path: Path, matched: "pl.DataFrame") -> str | None:
    """Rows that changed nothing and say something new: kept for people, with the reason."""
    import polars as pl

    words = {
        "unknown": "no batch holds such a row",
        "contradicting": "another outcome is known",
    }
    refused = matched.filter(pl.col("fate").is_in(list(words)))
    if refused.is_empty():
        return None
    digest = hashlib.sha256(sha256_of(path).encode()).hexdigest()[:16]
    place = job.folder / "quarantine" / f"labels-{digest}.parquet"
    place.parent.mkdir(parents=True, exist_ok=True)
    reason = pl.col("fate").replace_strict(words).alias(REASON)
    refused.select(*_key(job), _outcome(job), "known", reason).write_parquet(place)
    return str(place)
