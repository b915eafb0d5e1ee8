"""Read what a training script has saved beside the weights: class names, architecture and preprocessing."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from ka_ray.config.class_names import order_names

NAME_KEYS = (
    "classes",
    "class_names",
    "label_names",
    "idx_to_class",
    "class_to_idx",
    "id2label",
    "label2id",
    "categories",
)
"""Keys under which training scripts keep the names of the classes."""

DETAIL_KEYS = ("hyper_parameters", "hparams", "args", "config", "cfg", "meta", "opt")
"""Keys under which they keep their settings."""


def list_details(content: Any) -> list[Mapping[str, Any]]:
    """Return the mappings in a checkpoint that can have details: its top, and the settings in it.

    Args:
        content: What :func:`ka_ray.teachers.checkpoint_file.read_checkpoint` returned.
    """
    if not isinstance(content, Mapping):
        return []
    nested = [_as_mapping(content.get(key)) for key in DETAIL_KEYS]
    return [content, *(details for details in nested if details)]


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else {}


def find_class_names(content: Any) -> tuple[list[str], str] | None:
    """Return the names of the classes in a checkpoint, in the order of the scores, and their key.

    Args:
        content: The content of the checkpoint.

    Returns:
        The names and the key under which they are; None if there are none.
    """
    for details in list_details(content):
        for key in NAME_KEYS:
            try:
                names = order_names(details[key])
            except (KeyError, ValueError):  # no such key, or something else under it, such as a number
                continue
            if len(names) > 1:
                return names, key
    return None


ARCHITECTURE_KEYS = ("arch", "architecture", "model", "model_name", "network", "backbone", "encoder", "net")
"""Keys under which training scripts keep the name of the architecture."""


def find_architecture_names(content: Any) -> dict[str, str]:
    """Return names that settings in a checkpoint give its architecture: name -> its key."""
    found = dict[str, str]()
    for details in list_details(content):
        for key in ARCHITECTURE_KEYS:
            value = details.get(key)
            if isinstance(value, str):
                # timm writes `MODEL.WEIGHTS`, and some scripts `timm/MODEL`.
                found[value.removeprefix("timm/").partition(".")[0]] = key
    return found


def find_timm_arguments(content: Any) -> dict[str, Any]:
    """Return the arguments of timm's training script, if it wrote the checkpoint; else none."""
    details = _as_mapping(content.get("args")) if isinstance(content, Mapping) else {}
    return dict(details) if {"crop_pct", "interpolation", "model"} <= details.keys() else {}


def find_torchvision_arguments(content: Any) -> dict[str, Any]:
    """Return the arguments of torchvision's training script, if it wrote the checkpoint; else none."""
    details = _as_mapping(content.get("args")) if isinstance(content, Mapping) else {}
    return dict(details) if {"val_crop_size", "val_resize_size", "model"} <= details.keys() else {}


def describe_settings(content: Any) -> Iterator[str]:
    """Yield what a checkpoint of Lightning tells of its training, for the user."""
    settings = _as_mapping(content.get("hyper_parameters")) if isinstance(content, Mapping) else {}
    for key, value in settings.items():
        if isinstance(value, str | int | float | bool):
            yield f"{key}={value}"
