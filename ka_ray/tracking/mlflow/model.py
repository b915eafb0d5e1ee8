"""The student as a model of MLflow."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from ka_ray.student import Student

MODEL_NAME = "student"
"""The name of the logged model; MLflow loads it as ``runs:/RUN_ID/student``."""


def log_student(client: MlflowClient, experiment_id: str, run_id: str, student: Student) -> str:
    """Log a student as a PyTorch model named ``student``, linked to a run.

    The model is a graph of torch.export: loading it needs torch and MLflow, but not ka_ray, and unpickles
    nothing. Its input is float32 pixels in 0 ... 255, of the size that the student was trained on.

    Args:
        client: The client of the server or database.
        experiment_id: The id of the run's experiment.
        run_id: The id of the run.
        student: The student.

    Returns:
        MLflow's id of the model.
    """
    logged = client.create_logged_model(experiment_id, MODEL_NAME, run_id)
    try:
        with TemporaryDirectory() as folder, without_info_logs():
            model = Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                metadata={"classes": list(student.spec.classes), **student.spec.input_rules},
            )
            _save_model(student, Path(folder) / MODEL_NAME, model)
            client.log_model_artifacts(logged.model_id, str(Path(folder) / MODEL_NAME))
    except BaseException:  # Ctrl-C, too: otherwise the model would be shown as pending for ever
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


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
def without_info_logs() -> Iterator[None]:
    """Hide MLflow's log messages below warnings; creating a database alone prints dozens of them."""
    level = (logger := logging.getLogger("mlflow")).level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
