"""The images that a finished student is evaluated on, or tried on, from a path: no Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ka_ray.config import ImagesConfig, load_images
from ka_ray.images.saved_datasets import SPLITS, STATE
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


def guess_source(path: Path) -> str:
    """Return the kind of source that a path looks like; ``folder`` if nothing else.

    Args:
        path: A list of images (``.csv``, ``.tsv``), a Parquet file or a folder of them, a tar shard or a
            folder of them, a folder that Hugging Face's ``save_to_disk`` has written, or one of image files.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return "list"
    if suffix == ".parquet" or any(path.glob("*.parquet")):
        return "parquet"
    # A folder with subfolders, too, is more likely that of a dataset beside the tar file that it came in.
    if suffix == ".tar" or (any(path.glob("*.tar")) and not any(entry.is_dir() for entry in path.iterdir())):
        return "webdataset"
    return "datasets" if any((path / name).is_file() for name in (STATE, SPLITS)) else "folder"
