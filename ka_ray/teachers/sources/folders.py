"""Describe a teacher that is a folder: of timm, of transformers, or of a finished run of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ka_ray.errors import InputError
from ka_ray.storage.files import exists, read_json
from ka_ray.teachers.networks import STUDENT_NETWORK, TIMM, import_timm
from ka_ray.teachers.sources.description import Description, express, read_class_names
from ka_ray.teachers.sources.hubs import CONFIG, PREPROCESSOR, WEIGHT_FILES
from ka_ray.teachers.sources.library_preprocessing import preprocessing_of_timm, preprocessing_of_transformers
from ka_ray.teachers.transformers_networks import network_arguments

STUDENT, STUDENT_WEIGHTS = "student.json", "student.safetensors"
"""The files of a student in the output folder of a run."""


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder has a config of timm or transformers; users' own files are also called so."""
    if not exists(folder / CONFIG):
        return False
    try:
        return bool({"architecture", "model_type"} & read_object(folder / CONFIG).keys())
    except InputError:
        return False


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: The file is damaged, or holds something else.
    """
    try:
        return read_json(path)
    except (InputError, OSError) as error:
        raise InputError(f"from: {error}") from None


def describe_folder(folder: Path, checkpoint: Path | None = None, trusted: str = "") -> Description:
    """Describe the model in a folder.

    Args:
        folder: The folder, local or remote.
        checkpoint: The file with the weights; None: found in the folder.
        trusted: The network factory that the user allows a student's folder to name; empty: none.

    Raises:
        InputError: The folder is of no known kind, or has no weights.
    """
    if checkpoint is None and exists(folder / STUDENT):
        return _describe_student(folder, trusted)
    if not is_model_folder(folder):
        if exists(folder / CONFIG):
            read_object(folder / CONFIG)  # raises if it is damaged
        raise InputError(
            f"from: {folder} holds neither {STUDENT} (the output folder of a run) nor a {CONFIG} with "
            "`architecture` (a model of timm), `model_type` (transformers) or `teacher` (that of `ka-ray "
            "teach`); give the file with the weights, and its network"
        )
    config = read_object(folder / CONFIG)
    weights = checkpoint or _find_weights(folder)
    if "architecture" in config:
        return describe_timm(config, weights)
    return _describe_transformers(config, folder, weights)


def _find_weights(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if exists(folder / name):
            return folder / name
        if exists(folder / f"{name}.index.json"):
            raise InputError(f"from: the weights in {folder} are split into several files; save them as one")
    raise InputError(f"from: {folder} has a {CONFIG}, but no weights: {' or '.join(WEIGHT_FILES)}")


def _describe_student(folder: Path, trusted: str) -> Description:
    content = read_object(folder / STUDENT)
    spec = {key: value for key, value in content.items() if key != "classes"}
    inner = spec
    while inner.get("network") == STUDENT_NETWORK:  # a student of students holds the others' descriptions
        inner = inner["arguments"]
    network = str(inner.get("network"))
    # A factory is code, and the folder may come from somebody else.
    if ":" in network and (network != trusted or inner is not spec):
        raise InputError(
            f"from: the student in {folder} is built by the function {network!r}. If you trust it, name it "
            f"in the config: arguments: {{network: {network!r}}}"
        )
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
    settings = config.get("pretrained_cfg") or config
    labels = config.get("label_names") or settings.get("label_names") or config.get("labels")
    labels = labels or config.get("id2label") or []
    given = config.get("model_args") or {}
    arguments = {key: value for key, value in given.items() if key != "num_classes"}
    return Description(
        kind="a model of timm",
        network=f"{TIMM}{config['architecture']}",
        arguments=arguments,
        classes=read_class_names(labels),
        checkpoint=checkpoint,
        **express(
            lambda: preprocessing_of_timm(timm.data.resolve_data_config({}, pretrained_cfg=settings)), CONFIG
        ),
    )


def _describe_transformers(config: Mapping[str, Any], folder: Path, checkpoint: Path) -> Description:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise InputError(f"from: {folder} needs transformers; install ka_ray[hf]") from None
    found: dict[str, Any] = {}
    if exists(folder / PREPROCESSOR):
        settings = read_object(folder / PREPROCESSOR)
        found = express(lambda: preprocessing_of_transformers(settings), PREPROCESSOR)
    return Description(
        kind="a model of transformers",
        network="transformers",
        arguments=network_arguments(config),
        classes=read_class_names(config.get("id2label", [])),
        checkpoint=checkpoint,
        **found,
    )
