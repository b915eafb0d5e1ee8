"""The images that a finished student is evaluated on, or tried on, from a path: no Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ka_ray.config import ImagesConfig, load_images
from ka_ray.config.source_kind import guess_source
from ka_ray.storage.uris import to_path
from ka_ray.student import StudentSpec, load_student


def build_images_config(
    folder: str | Path, where: str, overrides: Sequence[str] = (), *, trust: bool = False
) -> ImagesConfig:
    """Build the config of images for a finished student: files are decoded as those that it learned from.

    Args:
        folder: The output folder of a run.
        where: ``digits``, or a path, which tells the kind of source: see :func:`guess_source`.
        overrides: Items ``key=value`` of the image source.
        trust: See :func:`ka_ray.student.load_student`.

    Returns:
        The config of the image source.

    Raises:
        InputError: The path does not exist, or a key cannot work.
    """
    return build_images_config_for(load_student(folder, trust=trust).spec, where, overrides)


def build_images_config_for(spec: StudentSpec, where: str, overrides: Sequence[str] = ()) -> ImagesConfig:
    """Build the config of images for a student that is loaded; see :func:`build_images_config`.

    Args:
        spec: What the student is.
        where: As there.
        overrides: As there.

    Returns:
        The config of the image source.

    Raises:
        InputError: As there.
    """
    tree: dict[str, Any] = {"size": spec.image_size, "decoding": dict(spec.decoding)}
    if where == "digits":
        tree |= {"source": "digits", "split": "test"}
    else:
        tree |= {"path": where, "source": guess_source(to_path(where))}
    return load_images(tree, overrides)
