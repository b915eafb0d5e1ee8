"""Describe a teacher that is a folder: of timm, of transformers, or of a finished run of this package."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ka_ray.config.class_names import order_names
from ka_ray.errors import InputError
from ka_ray.storage.files import exists, read_json, read_text
from ka_ray.teachers.networks import STUDENT_NETWORK, TIMM, import_timm
from ka_ray.teachers.sources.description import Description, name_classes
from ka_ray.teachers.sources.hubs import CONFIG, PREPROCESSOR, WEIGHT_FILES
from ka_ray.teachers.sources.library_preprocessing import preprocessing_of_timm, preprocessing_of_transformers
from ka_ray.teachers.transformers_networks import network_arguments

STUDENT, STUDENT_WEIGHTS = "student.json", "student.safetensors"
"""The files of a student in the output folder of a run."""


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder has the files of a student, or the config of timm or transformers."""
    return exists(folder / STUDENT) or exists(folder / CONFIG)


def describe_folder(folder: Path, checkpoint: Path | None = None) -> Description:
    """Describe the model in a folder.

    Args:
        folder: The folder, local or remote.
        checkpoint: The file with the weights; None: found in the folder.

    Raises:
        InputError: The folder is of no known kind, or has no weights.
    """
    if exists(folder / STUDENT):
        return _describe_student(folder)
    if not exists(folder / CONFIG):
        raise InputError(
            f"from: {folder} holds neither {STUDENT} (the output folder of a run) nor {CONFIG} (a model that "
            "timm or transformers saved); give the file with the weights"
        )
    config = read_json(folder / CONFIG)
    weights = checkpoint or _find_weights(folder)
    if "architecture" in config:
        return describe_timm(config, weights)
    if "model_type" in config:
        return _describe_transformers(config, folder, weights)
    raise InputError(
        f"from: {folder / CONFIG} has neither `architecture` (timm) nor `model_type` (transformers); give "
        "the file with the weights, and its network"
    )


def _find_weights(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if exists(folder / name):
            return folder / name
        if exists(folder / f"{name}.index.json"):
            raise InputError(f"from: the weights in {folder} are split into several files; save them as one")
    raise InputError(f"from: {folder} has a {CONFIG}, but no weights: {' or '.join(WEIGHT_FILES)}")


def _describe_student(folder: Path) -> Description:
    content = read_json(folder / STUDENT)
    spec = {key: value for key, value in content.items() if key != "classes"}
    return Description(
        kind="a student of ka_ray",
        network=STUDENT_NETWORK,
        arguments=spec,
        classes=tuple(content["classes"]),
        preprocessing=spec["preprocessing"],
        preprocessing_source=STUDENT,
        checkpoint=folder / STUDENT_WEIGHTS,
    )


def describe_timm(config: Mapping[str, Any], checkpoint: Path) -> Description:
    """Describe a model that timm saved.

    Args:
        config: Content of its ``config.json``.
        checkpoint: The file with its weights.

    Raises:
        InputError: timm is not installed, or its transform cannot be expressed.
    """
    timm = import_timm(f"from: {checkpoint.parent}")
    settings = config.get("pretrained_cfg", config)
    labels = config.get("label_names") or settings.get("label_names") or config.get("id2label") or []
    arguments = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    return Description(
        kind="a model of timm",
        network=f"{TIMM}{config['architecture']}",
        arguments=arguments,
        classes=name_classes(order_names(labels)),
        preprocessing=preprocessing_of_timm(timm.data.resolve_data_config({}, pretrained_cfg=settings)),
        preprocessing_source=CONFIG,
        checkpoint=checkpoint,
    )


def _describe_transformers(config: Mapping[str, Any], folder: Path, checkpoint: Path) -> Description:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise InputError(f"from: {folder} needs transformers; install ka_ray[hf]") from None
    found, source = {}, ""
    if exists(folder / PREPROCESSOR):
        # The library reads local folders only.
        with tempfile.TemporaryDirectory() as local:
            (Path(local) / PREPROCESSOR).write_text(read_text(folder / PREPROCESSOR))
            found, source = preprocessing_of_transformers(Path(local)), PREPROCESSOR
    return Description(
        kind="a model of transformers",
        network="transformers",
        arguments=network_arguments(config),
        classes=name_classes(order_names(config.get("id2label", []))),
        preprocessing=found,
        preprocessing_source=source,
        checkpoint=checkpoint,
    )
