"""`ka-ray predict`: predict the classes of image files with a finished student."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ka_ray.errors import InputError
from ka_ray.images.decode import decode_image
from ka_ray.storage.files import read_bytes
from ka_ray.storage.read_errors import is_fault_of_machine, read_again, to_user_error
from ka_ray.storage.uris import to_path
from ka_ray.student import load_student


@dataclass(frozen=True)
class Prediction:
    """The student's prediction for one image.

    Attributes:
        path: The path of the image, as given.
        class_name: The most probable class.
        probability: Its softmax probability among all classes.
    """

    path: str
    class_name: str
    probability: float


def predict(folder: str | Path, images: Sequence[str | Path], *, trust: bool = False) -> list[Prediction]:
    """Predict the classes of image files, without Ray.

    Args:
        folder: The output folder of a run.
        images: The paths of image files.
        trust: See :func:`ka_ray.student.load_student`.

    Returns:
        One prediction per image, in the order of ``images``.

    Raises:
        InputError: The folder holds no student, or an image cannot be read.
        ReadError: The machine or its disk could not read an image, not even when tried again.
    """
    student = load_student(folder, trust=trust)
    spec, predictions = student.spec, []
    for path in map(to_path, images):
        try:
            content = read_again(lambda: read_bytes(path))  # noqa: B023  # it is called at once
            pixels = spec.view.apply(decode_image(content, spec.decoding_rules))
        except Exception as error:  # decoders raise many kinds; each means: this image is unreadable
            if is_fault_of_machine(error):
                raise to_user_error(error, path) from None
            raise InputError(f"image {path} cannot be read: {error}") from None
        with torch.inference_mode():
            probabilities = student(torch.from_numpy(pixels)[None]).softmax(dim=1)[0]
        best = int(probabilities.argmax())
        predictions.append(Prediction(str(path), spec.classes[best], float(probabilities[best])))
    return predictions
