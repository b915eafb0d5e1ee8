"""`ka-ray predict`: predict the classes of image files with a finished student."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ka_ray.errors import InputError
from ka_ray.images.decode import decode_image
from ka_ray.runs.image_paths import find_images
from ka_ray.runs.output_folder import load_finished_student
from ka_ray.storage.files import read_bytes
from ka_ray.storage.read_errors import is_fault_of_machine, read_again, to_user_error
from ka_ray.student import Student, StudentSpec
from ka_ray.student.graph_student import GraphStudent

BATCH_SIZE = 32
"""Number of images per forward pass, by default."""

DECODING_THREADS = 8
"""Largest number of files that are read and decoded at once."""

OnUnreadable = Callable[[str, str], None]
"""Called with the path of an image that cannot be read, and the reason."""


@dataclass(frozen=True)
class Prediction:
    """The student's prediction for one image.

    Attributes:
        path: The path of the image, as given, or as found in a folder that was given.
        class_name: The most probable class.
        probability: Its softmax probability among all classes.
        top: The most probable classes with their probabilities, the best one first; as many as asked for.
    """

    path: str
    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...] = ()


def predict(
    folder: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    top: int = 1,
    batch_size: int = BATCH_SIZE,
    trust: bool = False,
) -> list[Prediction]:
    """Predict the classes of image files, without Ray.

    Args:
        folder: The output folder of a run.
        images: The paths of image files, and of folders of them; a text may also be a pattern such as
            ``photos/*.jpg``.
        top: Number of classes in :attr:`Prediction.top`.
        batch_size: Number of images per forward pass.
        trust: See :func:`ka_ray.student.load_student`.

    Returns:
        One prediction per image, in the order of ``images``; those of a folder are sorted by path.

    Raises:
        InputError: The folder holds no student, or an image cannot be read.
        ReadError: The machine or its disk could not read an image, not even when tried again.
    """
    return list(stream_predictions(folder, images, top=top, batch_size=batch_size, trust=trust))


def stream_predictions(
    folder: str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    top: int = 1,
    batch_size: int = BATCH_SIZE,
    trust: bool = False,
    on_unreadable: OnUnreadable | None = None,
) -> Iterator[Prediction]:
    """Predict the classes of image files one batch after another, as :func:`predict` does.

    Args:
        folder: The output folder of a run.
        images: As there; may be endless. The next paths are taken when the predictions before were.
        top: As there.
        batch_size: As there.
        trust: As there.
        on_unreadable: Called for each image that cannot be read, which is then left out; None: raise.

    Yields:
        One prediction per readable image, in order.

    Raises:
        InputError: As there; the folder is checked at once, and images when their turn comes.
        ReadError: As there.
    """
    if top < 1 or batch_size < 1:
        raise InputError(f"top = {top} and batch_size = {batch_size}: both must be at least 1")
    student = load_finished_student(folder, trust=trust)
    given = [images] if isinstance(images, str | Path) else images
    return _predict(student, find_images(given), top, batch_size, on_unreadable)


def _predict(
    student: Student | GraphStudent,
    paths: Iterator[Path],
    top: int,
    batch_size: int,
    on_unreadable: OnUnreadable | None,
) -> Iterator[Prediction]:
    with ThreadPoolExecutor(min(DECODING_THREADS, os.cpu_count() or 1)) as pool:
        while batch := list(islice(paths, batch_size)):
            read = list(pool.map(lambda path: _read(path, student.spec), batch))
            names, pixels = list[str](), list[npt.NDArray[np.uint8]]()
            for path, content in zip(batch, read, strict=True):
                if not isinstance(content, Exception):
                    names.append(str(path))
                    pixels.append(content)
                elif on_unreadable is None or is_fault_of_machine(content):
                    raise _to_error(content, path)
                else:
                    on_unreadable(str(path), str(content))
            if pixels:
                yield from _predict_batch(student, names, np.stack(pixels), top)


def _read(path: Path, spec: StudentSpec) -> npt.NDArray[np.uint8] | Exception:
    """Return the student's view of an image `[C, H, W]`, or why it cannot be read."""
    try:
        content = read_again(lambda: read_bytes(path))
        return spec.view.apply(decode_image(content, spec.decoding_rules))
    except Exception as error:  # decoders raise many kinds; each means: this image is unreadable
        return error


def _to_error(error: Exception, path: Path) -> Exception:
    if is_fault_of_machine(error):
        return to_user_error(error, path)
    return InputError(f"image {path} cannot be read: {error}")


def _predict_batch(
    student: Student | GraphStudent, names: Sequence[str], pixels: npt.NDArray[np.uint8], top: int
) -> Iterator[Prediction]:
    with torch.inference_mode():
        probabilities = student(torch.from_numpy(pixels)).softmax(dim=1)
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    classes = student.spec.classes
    for name, values, indices in zip(names, best.values.tolist(), best.indices.tolist(), strict=True):
        ranked = tuple((classes[index], value) for index, value in zip(indices, values, strict=True))
        yield Prediction(name, *ranked[0], top=ranked)
