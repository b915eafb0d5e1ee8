"""Describe a teacher that `ka-ray teach`, or a run with `training`, has trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ka_ray.config import Decoding, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.storage.files import exists
from ka_ray.teachers.sources.description import Description
from ka_ray.teachers.sources.folders import read_object
from ka_ray.teachers.sources.hubs import CONFIG

TAUGHT_WEIGHTS = "teacher.safetensors"
"""The file with the weights, in a folder with the teacher's name inside the output folder."""


def find_taught(path: Path) -> Path | None:
    """Return the weights of a trained teacher; None if the path is no such teacher.

    Args:
        path: The output folder of `ka-ray teach`, the folder of one teacher inside the output folder of a
            command that trained it, or its weights.

    Raises:
        InputError: The folder is that of a teacher whose training has not ended.
    """
    if path.name == TAUGHT_WEIGHTS:
        return path if exists(path.parent.parent / CONFIG) else None
    if exists(path / TAUGHT_WEIGHTS) and exists(path.parent / CONFIG):
        return path / TAUGHT_WEIGHTS
    teacher = _read_config(path).get("teacher")
    if not isinstance(teacher, Mapping):
        return None
    weights = path / str(teacher.get("name")) / TAUGHT_WEIGHTS
    if not exists(weights):
        raise InputError(f"from: the teacher in {path} is not trained to its end; run `ka-ray teach` again")
    return weights


def describe_taught(weights: Path, trusted: str = "") -> Description:
    """Describe a trained teacher by the config of the command that trained it.

    Args:
        weights: Its weights, as :func:`find_taught` returns them.
        trusted: The network factory that the user allows the folder to name; empty: none.

    Raises:
        InputError: The config is damaged, has no such teacher, or names a factory that is not trusted.
    """
    name, folder = weights.parent.name, weights.parent.parent
    content = _read_config(folder)
    sections = [content["teacher"]] if "teacher" in content else content.get("teachers", [])
    section = next((section for section in sections if section.get("name") == name), None)
    if section is None:
        raise InputError(f"from: {folder / CONFIG} has no teacher {name!r}, to which {weights} would belong")
    # Paths that only the training needed may be gone.
    teacher = TeacherConfig.model_validate(section | {"training": None, "checkpoint": None, "from": None})
    if ":" in teacher.network and teacher.network != trusted:  # the folder may come from somebody else
        raise InputError(
            f"from: the teacher in {folder} is built by the function {teacher.network!r}. If you trust it, "
            f"name it in the config: network: {teacher.network!r}"
        )
    images = content["images"]
    return Description(
        kind="a teacher trained by ka_ray",
        network=teacher.network,
        arguments=teacher.arguments,
        classes=teacher.classes,
        # What it left open was as in the images that it learned from; those of another run may differ.
        preprocessing=teacher.preprocessing.resolve(images["size"], images["resize"]).model_dump(),
        preprocessing_source=CONFIG,
        checkpoint=weights,
        scores={"output": teacher.output, "final_activation": teacher.final_activation},
        notes=_describe_decoding(Decoding.model_validate(images["decoding"])),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    return read_object(folder / CONFIG) if exists(folder / CONFIG) else {}


def _describe_decoding(decoding: Decoding) -> tuple[str, ...]:
    """Return a note if images were decoded in another way than a run does by default; empty if not."""
    default = Decoding()
    changed = [
        f"{key}: {getattr(decoding, key)}"
        for key in Decoding.model_fields
        if getattr(decoding, key) != getattr(default, key)
    ]
    return (f"it learned from images with images.decoding: {', '.join(changed)}",) if changed else ()
