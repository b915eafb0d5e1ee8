"""Tracking with MLflow. The only module that imports it, and only when it is used.

Everything goes through a client with an explicit run id: the process-wide tracking URI and active run, which
a caller may use for something else, stay as they are, and any thread may log.
"""

import copy
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # both are read at MLflow's import
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
from ka_ray.tracking.base import tracking_uri

MODEL = "student"
"""The name of the logged model: ``runs:/RUN_ID/student``."""

MAX_KEY_CHARS = 250
MAX_VALUE_CHARS = 6000
MAX_PARAMS = 100
"""MLflow's limits; of params those in one request."""


class MlflowTracker:
    """One MLflow run, on a server or in a SQLite file of the output folder."""

    def __init__(self, config: TrackingConfig, name: str, output: Path, run_id: str | None) -> None:
        given, artifacts = tracking_uri(config, output), None
        if given is None:
            artifacts = (output.absolute() / "mlartifacts").as_uri()
        uri = given or f"sqlite:///{output.absolute() / 'mlflow.db'}"
        with _quiet():
            self._client = MlflowClient(uri)
            run = _resume(self._client, run_id)
            if run is None:
                experiment_id = _experiment(self._client, config.experiment, artifacts)
                run = self._client.create_run(experiment_id, run_name=name)
        self._adopt(uri, run)

    def _adopt(self, uri: str, run: Any) -> None:
        self._run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self.tracking_uri: str | None = uri
        self.run_id: str | None = self._run_id
        page = f"{uri.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._run_id}"
        self.link: str | None = page if uri.startswith(("http://", "https://")) else None

    def child(self, name: str, run_id: str | None) -> "MlflowTracker":
        """Open a run below this one, or go on with it."""
        run = _resume(self._client, run_id)
        if run is None:
            tags = {MLFLOW_PARENT_RUN_ID: self._run_id}
            run = self._client.create_run(self._experiment_id, run_name=name, tags=tags)
        child = copy.copy(self)
        child._adopt(self.tracking_uri or "", run)
        return child

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep parameters, cut to MLflow's limits.

        MLflow never changes a parameter: of one that a resumed run has with another value, the new value
        becomes the tag ``resumed.KEY``.
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
        """Keep values of metrics, at one step, in one request."""
        now = time.time_ns() // 1_000_000
        values = [Metric(_entity_key(key), float(value), now, step) for key, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=values)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a directory under its own name."""
        with TemporaryDirectory() as here:
            local = download_into(path, Path(here)) if is_remote(path) else path
            self._client.log_artifact(self._run_id, str(local), folder)

    def log_student(self, student: Student) -> None:
        """Keep the student as a PyTorch model named ``student``, linked to the run.

        It is a graph of torch.export: whoever loads it needs torch and MLflow, but not ka_ray, and unpickles
        nothing. Its input is float32 pixels in 0 ... 255, as square as those that the student learned from.
        """
        logged = self._client.create_logged_model(self._experiment_id, MODEL, self._run_id)
        try:
            with TemporaryDirectory() as folder, _quiet():
                model = Model(
                    artifact_path=logged.artifact_location,
                    run_id=self._run_id,
                    model_uuid=logged.model_id,
                    model_id=logged.model_id,
                    metadata={"classes": list(student.spec.classes)},
                )
                _save_model(student, Path(folder) / MODEL, model)
                self._client.log_model_artifacts(logged.model_id, str(Path(folder) / MODEL))
        except BaseException:
            self._client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(self._run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


def _resume(client: MlflowClient, run_id: str | None) -> Any | None:
    """Set a run to running again; None if it is not there (any more)."""
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


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Find an experiment, or make it.

    Raises:
        InputError: It was deleted; MLflow keeps its name.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another run was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment: {name!r} was deleted in MLflow; restore it "
            f"(mlflow experiments restore -x {experiment.experiment_id}) or give another name"
        )
    return str(experiment.experiment_id)


def _entity_key(key: str) -> str:
    """Make a key that MLflow takes: other characters become ``_``, what is too long is cut."""
    return re.sub(r"[^/\w.\- ]", "_", key)[:MAX_KEY_CHARS]


def _save_model(student: Student, path: Path, model: Model) -> None:
    """Write the student as an MLflow model folder.

    The exported graph is bound to the CPU, while MLflow loads onto a GPU if there is one, and then fails:
    the model's own config therefore names the CPU.
    """
    size, num_classes = student.spec.image_size, len(student.spec.classes)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size)).astype(np.float32)
    single = np.dtype(np.float32)
    mlflow.pytorch.save_model(
        copy.deepcopy(student).cpu().eval(),
        str(path),
        mlflow_model=model,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(single, (-1, 3, size, size))]),
            outputs=Schema([TensorSpec(single, (-1, num_classes))]),
        ),
        input_example=pixels,  # two images: of one, torch.export would fix the batch size
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in ("mlflow", "numpy", "torch")],
        metadata=model.metadata,
        serialization_format="pt2",
    )
    model.flavors["python_function"]["config"]["device"] = "cpu"
    model.save(str(path / "MLmodel"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MLflow merely informs about (such as every migration of a new database) off the terminal."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
