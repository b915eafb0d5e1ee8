"""Find the images of which student and ensemble are sure that they show different classes.

Shapes: B images, K classes of the student, H and W in pixels.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ka_ray.sparse_counts import Scores

MAX_DISPUTES = 12
"""Number of images that are kept of a pass."""

PICTURE_PIXELS = 128
"""Longer side of a picture; images that are smaller stay as they are."""


@dataclass(frozen=True)
class Dispute:
    """An image for which student and ensemble predict different classes.

    Attributes:
        image_id: Id of the image in its source.
        label: Its label; empty without one.
        student: The class that the student predicts.
        student_probability: Softmax of the student's scores for it, in [0, 1].
        ensemble: The class that the ensemble predicts, with the gate if there is one.
        ensemble_probability: Softmax of its scores for it, in [0, 1].
        picture: The student's pixels as a small JPEG file.
    """

    image_id: int
    label: str
    student: str
    student_probability: float
    ensemble: str
    ensemble_probability: float
    picture: bytes

    @property
    def certainty(self) -> float:
        """How sure both are: the smaller one of the two probabilities."""
        return min(self.student_probability, self.ensemble_probability)


def find_disputes(
    image_ids: npt.NDArray[np.int64],
    labels: Sequence[str] | npt.NDArray[np.object_],
    pixels: npt.NDArray[np.uint8],
    student: Scores,
    ensemble: Scores,
    classes: Sequence[str],
) -> list[Dispute]:
    """Return the most disputed images of a batch, at most :data:`MAX_DISPUTES`.

    Args:
        image_ids: `[B]`.
        labels: `[B]`; empty texts for images without a label.
        pixels: The student's images, `[B, 3, H, W]`, or `[B, 1, H, W]` if they are grey.
        student: The student's scores, `[B, K]`.
        ensemble: The ensemble's scores, `[B, K]`.
        classes: `[K]`.
    """
    shares = [_softmax(scores) for scores in (student, ensemble)]
    predicted = [share.argmax(axis=1) for share in shares]
    certainty = np.minimum(*(share.max(axis=1) for share in shares))
    # Probabilities that are no numbers say nothing, and have no place in a report.
    [disputed] = np.nonzero((predicted[0] != predicted[1]) & np.isfinite(certainty))
    surest = disputed[np.argsort(-certainty[disputed], kind="stable")][:MAX_DISPUTES]
    return [
        Dispute(
            image_id=int(image_ids[i]),
            label=str(labels[i]),
            student=classes[predicted[0][i]],
            student_probability=float(shares[0][i].max()),
            ensemble=classes[predicted[1][i]],
            ensemble_probability=float(shares[1][i].max()),
            picture=_draw(pixels[i]),
        )
        for i in surest
    ]


def most_disputed(disputes: Iterable[Dispute]) -> list[Dispute]:
    """Return the most disputed images of several batches, the surest first, at most :data:`MAX_DISPUTES`.

    Their order does not depend on that of the batches.
    """
    return sorted(disputes, key=lambda one: (-one.certainty, one.image_id))[:MAX_DISPUTES]


def _softmax(scores: Scores) -> npt.NDArray[np.float64]:
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _draw(pixels: npt.NDArray[np.uint8]) -> bytes:
    grey = len(pixels) == 1
    image = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()
