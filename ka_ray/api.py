"""What is done with a finished student: evaluate, predict, load."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ka_ray.config import ImagesConfig, RayConfig, load_images
from ka_ray.display import Display
from ka_ray.distributed.cluster import connect
from ka_ray.distributed.evaluate import Evaluation, evaluate_images
from ka_ray.errors import InputError
from ka_ray.files import absolute, atomic_file, make_folder, read_bytes
from ka_ray.images import chosen_ids, open_source
from ka_ray.images.decode import decode
from ka_ray.metrics import accuracies
from ka_ray.student import load_student
from ka_ray.uris import to_path


@dataclass(frozen=True)
class Prediction:
    """What the student says of one image."""

    path: str
    class_name: str
    probability: float


def evaluate(folder: str | Path, images: ImagesConfig, ray: RayConfig | None = None) -> dict[str, Any]:
    """Judge a finished student on other images; needs its folder alone, not the teachers.

    Args:
        folder: Output folder of a run.
        images: Labelled images; classes that the student does not know are not counted.
        ray: Where to run.

    Returns:
        As the ``accuracy`` section of the report; what needs the teachers is None.

    Raises:
        InputError: The folder holds no student, or the images have no labels that it knows.
    """
    student = load_student(folder)
    source = open_source(images)
    ids = chosen_ids(source.num_images, images.limit, seed=0)
    if source.class_names is not None and not set(source.class_names) & set(student.spec.classes):
        raise InputError(
            f"none of the images' classes {list(source.class_names)[:10]} is known to the student, "
            f"which knows {list(student.spec.classes)[:10]}"
        )
    students = {"student": absolute(to_path(folder))}
    work = Evaluation(images, source, ids, student.spec.unified, [], students)
    with Display() as display, connect(ray or RayConfig()), display.images("evaluate", len(ids)) as on_images:
        counts, _ = evaluate_images(work, on_images)
    return accuracies(counts["student"], list(student.spec.label_sets))


def predict(folder: str | Path, images: Sequence[str | Path]) -> list[Prediction]:
    """Name the class of image files, without Ray.

    Args:
        folder: Output folder of a run.
        images: Paths of image files.

    Returns:
        For each, the most probable class and its softmax probability among all classes.

    Raises:
        InputError: The folder holds no student, or an image cannot be read.
    """
    student = load_student(folder)
    spec, predictions = student.spec, []
    for path in map(to_path, images):
        try:
            pixels = decode(read_bytes(path), spec.image_size, "crop" if spec.resize == "crop" else "squash")
        except Exception as error:  # decoders raise many kinds; each means: this image is unreadable
            raise InputError(f"image {path} cannot be read: {error}") from None
        with torch.inference_mode():
            probabilities = student(torch.from_numpy(pixels)[None]).softmax(dim=1)[0]
        best = int(probabilities.argmax())
        predictions.append(Prediction(str(path), spec.classes[best], float(probabilities[best])))
    return predictions


def save_samples(images: ImagesConfig, folder: Path, count: int = 5) -> list[Path]:
    """Write the first images of a source as PNG files named after their labels, to try `predict` on.

    Args:
        images: The source.
        folder: Gets the files; made if it is not there.
        count: How many.

    Returns:
        The files' paths.
    """
    source, paths = open_source(images), []
    make_folder(folder)
    for encoded in islice(source.read(source.chunks[0], lambda image_id: True), count):
        paths.append(folder / f"{encoded.image_id}_{encoded.label}.png")
        pixels = decode(encoded.content, images.size, images.resize)
        with atomic_file(paths[-1]) as part:
            Image.fromarray(pixels.transpose(1, 2, 0)).save(part, format="PNG")
    return paths


def images_for(folder: str | Path, where: str, overrides: Sequence[str] = ()) -> ImagesConfig:
    """Describe images for a finished student, decoded as those that it was learned from.

    Args:
        folder: Output folder of a run.
        where: ``digits``, a Parquet file or a folder of them, or a folder of image files.
        overrides: ``key=value`` of the image source.

    Raises:
        InputError: The place does not exist, or a key cannot work.
    """
    spec, path = load_student(folder).spec, to_path(where)
    tree: dict[str, Any] = {"size": spec.image_size, "resize": spec.resize, "source": "folder"}
    if where == "digits":
        tree |= {"source": "digits", "split": "test"}
    else:
        is_parquet = path.suffix == ".parquet" or any(path.glob("*.parquet"))
        tree |= {"path": where, "source": "parquet" if is_parquet else "folder"}
    return load_images(tree, overrides)


__all__ = ["Prediction", "evaluate", "images_for", "load_student", "predict", "save_samples"]
