"""MLflow: runs, their evidence, model versions with aliases. Only this and pipelines.servable import mlflow.

One client, explicit run ids and no active run, so threads and processes never write into each other's runs.
"""

import json
import logging
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.actors import account_name
from pipelines.addresses import require_answer, unreachable
from pipelines.files import exclusive_lock, sha256_of
from pipelines.fingerprint import environment, process_is_alive, process_tags
from pipelines.mlflow_limits import BATCH, PARAM_BATCH, batches, flat, safe_name
from pipelines.mlflow_words import ABOUT_MODEL, AS_TRAINING, EXPERIMENT_TAGS
from pipelines.servable import save_model, sign_model, verify_model
from pipelines.settings import Settings
from pipelines.signing import load_key, trusted_keys
from validation.errors import InputError
from validation.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as StoredVersion

EXPERIMENT = "dankai"
ACCOUNT = "mlflow.user"  # shown by MLflow's own pages
SAMPLE_SECONDS = 5
logger = logging.getLogger(__name__)


class ModelVersion(Record):
    """One registered model version; `checkpoint` and `snapshot` are the SHA-256 of its weights and data."""

    name: str
    version: int
    checkpoint: str
    snapshot: str
    run_id: str = ""
    aliases: tuple[str, ...] = ()


def registered_name(dataset: str) -> str:
    """Name under which a dataset's models are registered."""
    return f"dankai-{dataset}"


class Tracker:
    """Runs and model versions of one installation."""

    def __init__(self, client: "MlflowClient", experiment_id: str, uri: str, keys: Path) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._keys = keys
        self.uri = uri

    @classmethod
    def open(cls, settings: Settings) -> "Tracker":
        """Connect, migrating a fresh database once whoever comes first, and close the runs of dead processes.

        Raises InputError when the store cannot be reached.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        uri = settings.tracking_uri
        # Processes that migrate one fresh database at the same time destroy it for each other.
        with exclusive_lock(settings.home / "mlflow.lock"):
            require_answer(uri)
            try:
                client = MlflowClient(tracking_uri=uri, registry_uri=uri)
                experiment_id = _experiment_id(client, settings)
            except (MlflowException, SQLAlchemyError) as error:
                raise unreachable(uri, error) from error
        tracker = cls(client, experiment_id, uri, settings.keys)
        tracker._fail_dead_runs()
        return tracker

    # Runs

    @contextmanager
    def run(
        self, name: str, kind: str, tags: Mapping[str, str] | None = None, parent: str | None = None
    ) -> Iterator[str]:
        """A run's id for the length of the block; it ends FINISHED, or FAILED with the reason as a tag.

        Environment fingerprint and the machine's load are recorded with it.
        """
        fingerprint = {
            f"env.{key}": str(value) or "none" for key, value in environment().model_dump().items()
        }
        family = {"mlflow.parentRunId": parent} if parent else {}
        # MLflow shows them in this order: what the run is comes first, where it ran last.
        about = {"kind": kind, **(tags or {}), ACCOUNT: account_name()}
        all_tags = {**about, **family, **process_tags(), **fingerprint}
        run_id = self._client.create_run(self._experiment_id, run_name=name, tags=all_tags).info.run_id
        try:
            with self._watched(run_id):
                yield run_id
        except BaseException as error:
            self._fail(run_id, f"{type(error).__name__}: {_first_line(error)}")
            raise
        self._client.set_terminated(run_id, "FINISHED")

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Parameters; nested mappings become dotted names."""
        from mlflow.entities import Param

        for batch in batches((Param(safe_name(key), str(value)) for key, value in flat(params)), PARAM_BATCH):
            self._client.log_batch(run_id, params=batch)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """The values of one step."""
        self.log_series(run_id, [(step, metrics)])

    def log_series(self, run_id: str, series: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Values of many steps, as (step, {name: value}), in few calls."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = (
            Metric(safe_name(key), float(value), now, step)
            for step, row in series
            for key, value in row.items()
        )
        for batch in batches(metrics, BATCH):
            self._client.log_batch(run_id, metrics=batch)

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """A file, or a whole folder, into the run's artifact `folder`."""
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        log(run_id, str(path), folder)

    def log_dict(self, run_id: str, value: Mapping[str, Any], name: str) -> None:
        """A mapping as JSON or YAML, by the ending of `name`."""
        self._client.log_dict(run_id, dict(value), name)

    def log_figure(self, run_id: str, figure: "Figure", name: str) -> None:
        self._client.log_figure(run_id, figure, name)

    def log_dataset(self, run_id: str, name: str, digest: str, source: str, context: str) -> None:
        """The data a run used: `digest` identifies it (36 characters are kept), `context` says for what."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest[:36], source_type="local", source=source)
        self._client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def get_run(self, run_id: str) -> "Run":
        """MLflow's own record of a run: status, tags, params, last metrics, inputs."""
        return self._client.get_run(run_id)

    def page(self, run_id: str, otherwise: str | None = None, artifact: str = "") -> str | None:
        """Address of the run's page, or of an artifact there, on the server that shows it or `otherwise`.

        Never with a password.
        """
        at_server = self.uri.startswith("http")
        base = re.sub(r"://[^/@]*@", "://", self.uri) if at_server else otherwise
        below = f"/artifacts/{artifact}" if artifact else ""
        place = f"#/experiments/{self._experiment_id}/runs/{run_id}{below}?{AS_TRAINING}"
        return base and f"{base.rstrip('/')}/{place}"

    def find_runs(self, tags: Mapping[str, str]) -> "list[Run]":
        """Finished runs that carry all of these tags, oldest first."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        filter_string, page, found = f"attributes.status = 'FINISHED' and {wanted}", None, []
        while page is None or page:
            answer = self._client.search_runs(
                [self._experiment_id],
                filter_string,
                max_results=BATCH,
                order_by=["attributes.start_time ASC"],
                page_token=page,
            )
            found += list(answer)
            page = answer.token or ""
        return found

    def load_dict(self, run_id: str, name: str) -> dict[str, Any]:
        """A mapping that was logged as JSON. Raises InputError where there is no such run or no such file."""
        from mlflow.exceptions import MlflowException

        try:
            with tempfile.TemporaryDirectory() as folder:
                path = self._client.download_artifacts(run_id, name, folder)
                return json.loads(Path(path).read_bytes())
        except (MlflowException, OSError, ValueError) as error:
            raise InputError(f"run {run_id}: no readable {name} ({_first_line(error)})") from None

    # Model versions

    def register_version(
        self,
        dataset: str,
        checkpoint: Path,
        config: Path,
        checkpoint_hash: str,
        snapshot_hash: str,
        run_id: str,
        density: float,
        tags: Mapping[str, str] | None = None,
        description: str = "",
    ) -> ModelVersion:
        """Register weights (safetensors) and config (JSON) as a model that MLflow can serve.

        `density` is the share of key blocks that it reads unless a request says otherwise; 0 is dense.
        Asked again for the same weights of the same run, it answers with the version that exists.
        Raises InputError when the file is not what `checkpoint_hash` says or the model does not answer.
        """
        if sha256_of(checkpoint) != checkpoint_hash:
            raise InputError(f"{checkpoint}: not the judged checkpoint {checkpoint_hash[:12]}; train again")
        name = registered_name(dataset)
        if existing := self._find_version(name, checkpoint_hash, run_id):
            return existing
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder) / "model", checkpoint, config, density)
            sign_model(Path(folder) / "model", load_key(self._keys))
            self._client.log_artifacts(run_id, f"{folder}/model", "model")
        hashes = {"checkpoint": checkpoint_hash, "snapshot": snapshot_hash}
        stored = self._client.create_model_version(
            name, f"runs:/{run_id}/model", run_id, tags={**(tags or {}), **hashes}, description=description
        )
        return _version(stored)

    def describe_version(self, name: str, version: int, text: str) -> None:
        """Markdown that MLflow's page of the version shows."""
        self._client.update_model_version(name, str(version), description=text)

    def download_version(self, version: ModelVersion, folder: Path) -> Path:
        """Folder with its model.safetensors and config.json; MLflow's model is the folder above.

        Raises InputError if the files are not those that were signed when the version was registered.
        """
        from mlflow.exceptions import MlflowException

        try:
            model = Path(self._client.download_artifacts(version.run_id, "model", str(folder)))
        except (MlflowException, OSError) as error:
            said = f"{version.name} version {version.version}: its files cannot be had"
            raise InputError(f"{said} ({_first_line(error)})") from error
        verify_model(model, trusted_keys(self._keys), version.checkpoint)
        return model / "artifacts"

    def get_version(self, name: str, version: int) -> ModelVersion:
        """Raises InputError if the registry has no such version."""
        from mlflow.exceptions import MlflowException

        try:
            return _version(self._client.get_model_version(name, str(version)))
        except MlflowException as error:
            raise InputError(f"{name}: there is no version {version} ({_first_line(error)})") from error

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point `alias` at a version. Raises InputError if the registry has no such version."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_registered_model_alias(name, alias, str(version))
        except MlflowException as error:
            raise InputError(
                f"{name}: cannot make version {version} {alias} ({_first_line(error)})"
            ) from error

    def delete_alias(self, name: str, alias: str) -> None:
        self._client.delete_registered_model_alias(name, alias)

    def get_by_alias(self, name: str, alias: str) -> ModelVersion | None:
        """The version that carries `alias`, None if none does."""
        version = self.aliases(name).get(alias)
        return None if version is None else _version(self._client.get_model_version(name, str(version)))

    def aliases(self, name: str) -> dict[str, int]:
        """Every alias of a registered model; empty where there is no such model."""
        model = self._model(name)
        return {alias: int(version) for alias, version in model.aliases.items()} if model else {}

    # What the registry remembers of the release log, so that a log cut short is noticed

    def note_release_head(self, name: str, head: str, key: str) -> None:
        """`head`: hash of the log entry that the model agrees with; `key`: id of the key that signed it."""
        self._client.set_registered_model_tag(name, "release_key", key)
        self._client.set_registered_model_tag(name, "release_head", head)

    def release_head(self, name: str) -> str | None:
        """Hash of the last log entry that the model was reconciled with; None before the first time."""
        model = self._model(name)
        return model.tags.get("release_head") if model else None

    def released_datasets(self) -> dict[str, str]:
        """Datasets whose models were ever reconciled with a release log, and the key that signed it last."""
        prefix, keys, token = registered_name(""), dict[str, str](), ""
        while token is not None:
            page = self._client.search_registered_models(max_results=BATCH, page_token=token or None)
            released = (model for model in page if "release_head" in model.tags)
            keys |= {model.name: model.tags.get("release_key", "") for model in released}
            token = page.token or None
        return {name.removeprefix(prefix): key for name, key in keys.items() if name.startswith(prefix)}

    def _model(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _find_version(self, name: str, checkpoint_hash: str, run_id: str) -> ModelVersion | None:
        if self._model(name) is None:
            self._client.create_registered_model(
                name, description=ABOUT_MODEL.format(name.removeprefix("dankai-"))
            )
        versions = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        return next(
            (_version(stored) for stored in versions if stored.tags.get("checkpoint") == checkpoint_hash),
            None,
        )

    @contextmanager
    def _watched(self, run_id: str) -> Iterator[None]:
        """CPU, memory, disk, network and GPU load of the machine, as metrics named system/..."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, sampling_interval=SAMPLE_SECONDS, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()
            # The thread leaves without publishing, so a run shorter than one interval would have no sample.
            monitor.collect_metrics()
            monitor.publish_metrics(monitor.aggregate_metrics())
            monitor.mlflow_logger.flush()

    def _fail(self, run_id: str, reason: str) -> None:
        self._client.set_tag(run_id, "failure", reason)
        self._client.set_terminated(run_id, "FAILED")

    def _fail_dead_runs(self) -> None:
        host = process_tags()["process.host"]
        here = f"attributes.status = 'RUNNING' and tags.`process.host` = '{host}'"
        for run in self._client.search_runs([self._experiment_id], here, max_results=BATCH):
            if not process_is_alive(run.data.tags):
                self._fail(run.info.run_id, "its process died")
                logger.warning("run %s: its process died; marked as failed", run.info.run_name)


def migrate(uri: str) -> None:
    """Bring the database at `uri` to the installed MLflow's schema. Raises InputError where it cannot."""
    from mlflow.db import upgrade
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    require_answer(uri)
    try:
        upgrade.callback(uri)  # type: ignore[misc]  # the command itself would show a password in its arguments
    except (MlflowException, SQLAlchemyError) as error:
        raise unreachable(uri, error) from error


def _experiment_id(client: "MlflowClient", settings: Settings) -> str:
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        return experiment.experiment_id
    is_server = settings.tracking_uri.startswith("http")  # it knows where its artifacts go
    place = None if is_server else settings.artifacts.as_uri()
    return client.create_experiment(EXPERIMENT, place, tags=EXPERIMENT_TAGS)


def _version(stored: "StoredVersion") -> ModelVersion:
    return ModelVersion(
        name=stored.name,
        version=int(stored.version),
        checkpoint=stored.tags.get("checkpoint", ""),
        snapshot=stored.tags.get("snapshot", ""),
        run_id=stored.run_id or "",
        aliases=tuple(sorted(stored.aliases)),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:500]
