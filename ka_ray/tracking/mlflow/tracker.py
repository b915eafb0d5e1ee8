"""One MLflow run: its parameters, metrics, tags, images, files and student.

Everything goes through a client with an explicit run id. So MLflow's process-wide tracking URI and active
run, which the caller of this package may use for something else, stay as they are, and any thread may log.
"""

import copy
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient, MlflowException
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from ka_ray.config import TrackingConfig
from ka_ray.errors import InputError
from ka_ray.storage.cache import download_into
from ka_ray.storage.files import is_remote
from ka_ray.student import Student
from ka_ray.tracking.base import Tracker, tracking_uri
from ka_ray.tracking.mlflow.inputs import log_images
from ka_ray.tracking.mlflow.model import log_student, without_info_logs
from ka_ray.tracking.mlflow.registry import register
from ka_ray.tracking.mlflow.system_metrics import SystemMetrics
from ka_ray.tracking.moved import ARTIFACTS, DATABASE, follow_moved_folder
from ka_ray.tracking.pages import run_page
from ka_ray.tracking.records import StudentVersion, TrackedImages
from ka_ray.tracking.uri import sqlite_uri, translated_errors

MAX_KEY_CHARS = 250
"""MLflow's limit for the name of a parameter, metric or tag."""

MAX_VALUE_CHARS = 6000
"""MLflow's limit for the value of a parameter."""

MAX_PARAMS = 100
"""MLflow's limit for the number of parameters in one request."""


class MlflowTracker(Tracker):
    """One MLflow run, on a server or in a SQLite file in the output folder.

    Args:
        config: The config's ``tracking`` section.
        name: The run's name.
        output: The run's output folder.
        run_id: MLflow's id of the run to continue; None, or an id that does not exist, for a new run.
    """

    def __init__(self, config: TrackingConfig, name: str, output: Path, run_id: str | None) -> None:
        configured = tracking_uri(config, output)
        # MLflow's default would be a folder in the current folder, not in the run's.
        artifacts = None if configured else (output.absolute() / ARTIFACTS).as_uri()
        uri = configured or sqlite_uri(output.absolute() / DATABASE)
        if not configured:
            follow_moved_folder(output)
        with without_info_logs(), translated_errors(uri):
            self._client = MlflowClient(uri)
            run = _resume_run(self._client, run_id)
            if run is None:
                experiment_id = _find_or_create_experiment(self._client, config.experiment, artifacts)
                run = self._client.create_run(experiment_id, run_name=name)
        self._set_run(uri, run)
        with without_info_logs():
            self._system = SystemMetrics(uri, self._run_id) if config.system_metrics else None

    def _set_run(self, uri: str, run: Any) -> None:
        self._run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self._model_id: str | None = None
        self.tracking_uri: str | None = uri
        self.run_id: str | None = self._run_id
        page = run_page(uri, self._experiment_id, self._run_id)
        self.link: str | None = page if uri.startswith(("http://", "https://")) else None

    def child(self, name: str, run_id: str | None) -> "MlflowTracker":
        """Open a child run, which MLflow shows nested under this one.

        Args:
            name: The child run's name.
            run_id: MLflow's id of the child run to continue; None, or an unknown id, for a new run.
        """
        run = _resume_run(self._client, run_id)
        if run is None:
            tags = {MLFLOW_PARENT_RUN_ID: self._run_id}
            run = self._client.create_run(self._experiment_id, run_name=name[:MAX_KEY_CHARS], tags=tags)
        child = copy.copy(self)
        child._set_run(self.tracking_uri or "", run)
        child._system = None  # one for all runs of this process
        return child

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, cut to MLflow's limits.

        MLflow refuses to change a parameter. If a continued run has a parameter with another value, the new
        value is logged as the tag ``resumed.KEY``.
        """
        known = self._client.get_run(self._run_id).data.params
        values = {_entity_key(key): str(value)[:MAX_VALUE_CHARS] for key, value in params.items()}
        new = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(self._run_id, params=new[start : start + MAX_PARAMS])
        for key, value in values.items():
            if key in known and known[key] != value:
                self._client.set_tag(self._run_id, f"resumed.{key}"[:MAX_KEY_CHARS], value)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the values of metrics, in a single request.

        Args:
            metrics: Values by name, ``stage/quantity``.
            step: The step, counted in epochs from 1; 0 for metrics that are measured only once.
        """
        now = time.time_ns() // 1_000_000  # MLflow counts in milliseconds
        values = [Metric(_entity_key(key), float(value), now, step) for key, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=values)

    def log_warnings(self, warnings: Sequence[str]) -> None:
        """Set the tag ``warning`` if there is any."""
        if warnings:
            self._client.set_tag(self._run_id, "warning", " ".join(warnings)[:MAX_VALUE_CHARS])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, cut to MLflow's limits.

        Args:
            tags: Values by name.
        """
        for key, value in tags.items():
            self._client.set_tag(self._run_id, _entity_key(key), value[:MAX_VALUE_CHARS])

    def describe(self, text: str) -> None:
        """Set the description at the top of the run's page.

        Args:
            text: Markdown.
        """
        self._client.set_tag(self._run_id, MLFLOW_RUN_NOTE, text[:MAX_VALUE_CHARS])

    def log_images(self, images: TrackedImages) -> None:
        """Log images that the run read, as a dataset.

        Args:
            images: The images.
        """
        log_images(self._client, self._run_id, images)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file, or of a folder under its own name.

        Args:
            path: The local or remote file or folder.
            folder: Folder among the run's artifacts in which to store it; None for their top folder.
        """
        with TemporaryDirectory() as temporary:
            # MLflow uploads only local files.
            local = download_into(path, Path(temporary)) if is_remote(path) else path
            self._client.log_artifact(self._run_id, str(local), folder)

    def log_student(self, student: Student) -> None:
        """Log the student as a model; see :func:`ka_ray.tracking.mlflow.model.log_student`."""
        self._model_id = log_student(self._client, self._experiment_id, self._run_id, student)

    def register_student(self, version: StudentVersion, notify: Callable[[str], None]) -> None:
        """Register the logged student; see :func:`ka_ray.tracking.mlflow.registry.register`.

        Args:
            version: The version.
            notify: Called with what came of it.

        Raises:
            RuntimeError: The student has not been logged.
        """
        if self._model_id is None:
            raise RuntimeError("the student is not logged, so that it cannot be registered")
        notify(register(self._client, self._run_id, self._model_id, version))

    def finish(self, failed: bool) -> None:
        """End the run, as failed or as finished."""
        if self._system is not None:
            with without_info_logs():
                self._system.close()
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _resume_run(client: MlflowClient, run_id: str | None) -> Any | None:
    """Set a run to running again and return it; None if it does not exist or was deleted."""
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if run.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return run


def _find_or_create_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Return the id of an experiment, which is created if it does not exist.

    Args:
        client: The client of the server or database.
        name: The experiment's name.
        artifacts: URI of the folder for a new experiment's files; None: the server chooses.

    Raises:
        InputError: The experiment was deleted. MLflow keeps the name, so that no new one can have it.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # Another run may have created it since it was looked up.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment: {name!r} was deleted in MLflow; restore it "
            f"(mlflow experiments restore -x {experiment.experiment_id}) or set another name"
        )
    return str(experiment.experiment_id)


def _entity_key(key: str) -> str:
    """Return a key that MLflow accepts: characters that it refuses become ``_``, and long keys are cut."""
    return re.sub(r"[^/\w.\- ]", "_", key)[:MAX_KEY_CHARS]
