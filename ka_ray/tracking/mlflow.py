"""Tracking with MLflow; the only module that imports it.

Everything goes through a client with an explicit run id. So MLflow's process-wide tracking URI and active
run, which the caller of this package may use for something else, stay as they are, and any thread may log.
"""

import copy
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Before the import of MLflow, which reads both variables.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient, MlflowException
from mlflow.entities import LoggedModelOutput, Metric, Param
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from ka_ray.config import TrackingConfig
from ka_ray.errors import InputError
from ka_ray.storage.cache import download_into
from ka_ray.storage.files import is_remote
from ka_ray.student import Student
from ka_ray.tracking.base import Tracker, tracking_uri
from ka_ray.tracking.uri import sqlite_uri, translated_errors

MODEL_NAME = "student"
"""The name of the logged model; MLflow loads it as ``runs:/RUN_ID/student``."""

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
        artifacts = None if configured else (output.absolute() / "mlartifacts").as_uri()
        uri = configured or sqlite_uri(output.absolute() / "mlflow.db")
        with _without_info_logs(), translated_errors(uri):
            self._client = MlflowClient(uri)
            run = _resume_run(self._client, run_id)
            if run is None:
                experiment_id = _find_or_create_experiment(self._client, config.experiment, artifacts)
                run = self._client.create_run(experiment_id, run_name=name)
        self._set_run(uri, run)

    def _set_run(self, uri: str, run: Any) -> None:
        self._run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self.tracking_uri: str | None = uri
        self.run_id: str | None = self._run_id
        page = f"{uri.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._run_id}"
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
        """Log the student as a PyTorch model named ``student``, linked to the run.

        The model is a graph of torch.export: loading it needs torch and MLflow, but not ka_ray, and unpickles
        nothing. Its input is float32 pixels in 0 ... 255, of the size that the student was trained on.
        """
        logged = self._client.create_logged_model(self._experiment_id, MODEL_NAME, self._run_id)
        try:
            with TemporaryDirectory() as folder, _without_info_logs():
                model = Model(
                    artifact_path=logged.artifact_location,
                    run_id=self._run_id,
                    model_uuid=logged.model_id,
                    model_id=logged.model_id,
                    metadata={"classes": list(student.spec.classes), **student.spec.input_rules},
                )
                _save_model(student, Path(folder) / MODEL_NAME, model)
                self._client.log_model_artifacts(logged.model_id, str(Path(folder) / MODEL_NAME))
        except BaseException:  # Ctrl-C, too: otherwise the model would be shown as pending for ever
            self._client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(self._run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def finish(self, failed: bool) -> None:
        """End the run, as failed or as finished."""
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


def _save_model(student: Student, path: Path, model: Model) -> None:
    """Write the student as an MLflow model folder."""
    shape, num_classes = student.spec.view.shape, len(student.spec.classes)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.float32)
    pixel_type = np.dtype(np.float32)
    mlflow.pytorch.save_model(
        copy.deepcopy(student).cpu().eval(),
        str(path),
        mlflow_model=model,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(pixel_type, (-1, *shape))]),
            outputs=Schema([TensorSpec(pixel_type, (-1, num_classes))]),
        ),
        input_example=pixels,  # two images: from one, torch.export would fix the batch size to 1
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in ("mlflow", "numpy", "torch")],
        metadata=model.metadata,
        serialization_format="pt2",
    )
    # The exported graph stays on the CPU, but MLflow would load it onto a GPU, and fail, without this.
    model.flavors["python_function"]["config"]["device"] = "cpu"
    model.save(str(path / "MLmodel"))


@contextmanager
def _without_info_logs() -> Iterator[None]:
    """Hide MLflow's log messages below warnings; creating a database alone prints dozens of them."""
    level = (logger := logging.getLogger("mlflow")).level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
