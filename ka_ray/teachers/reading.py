"""What is read from the teachers for a batch of images: features, embeddings and scores.

Shapes: n images of a batch, C channels of one teacher at a tap, K_t classes and D_t embedding channels of a
teacher.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from torch import Tensor

from ka_ray.config import ScoresConfig
from ka_ray.features.resize import resize_features
from ka_ray.features.stack import EMBEDDING, SCORES, TARGETS, feature_column
from ka_ray.images.augment import score_views
from ka_ray.images.views import IMAGE
from ka_ray.numerics.host_copies import to_device, to_numpy
from ka_ray.numerics.mixed_precision import Precision, autocast
from ka_ray.teachers.teacher import Teacher

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ReadSpec:
    """Which features and scores are read from every teacher.

    Attributes:
        paths: Teacher -> tap -> module path; without taps, only scores are read.
        spaces: Tap -> height and width to which the features of all teachers are resized.
        scores: The config's ``scores`` section; it says over which views of an image scores are averaged, and
            what the descriptive network is.
        images: Teacher -> column with its images; the column ``image`` for teachers that are not named.
        last_layers: Teacher -> path of its last layer, whose input is read as the embedding; empty: not read.
            If the descriptive network is among them, it is run, too.
        float32: Taps, or names of other columns, that are passed on and stored as float32: half precision
            would lose what they say.
        stored_images: Columns of images that are stored besides ``image``, because the teachers of training
            workers or teachers in training need them.
    """

    paths: Mapping[str, Mapping[str, str]]
    spaces: Mapping[str, tuple[int, ...]]
    scores: ScoresConfig
    images: Mapping[str, str] = field(default_factory=dict)
    stored_images: tuple[str, ...] = ()
    last_layers: Mapping[str, str] = field(default_factory=dict)
    float32: frozenset[str] = frozenset()


def read_teacher(teacher: Teacher, batch: Columns, reading: ReadSpec, amp: Precision = "none") -> Columns:
    """Run a teacher on its images of a batch.

    Args:
        teacher: The teacher, on the device that it runs on.
        batch: The images, ``image [n, 3, H, W]`` uint8, or the column that the reading names.
        reading: Which features and scores are read.
        amp: Number format of most layers, on a GPU; elsewhere, that of the weights.

    Returns:
        ``tap@teacher [n, C, *space]`` for every tap, ``scores@teacher [n, K_t]`` and, with ``last_layers``,
        ``embedding@teacher [n, D_t]``. Features and embeddings are in float16, or in float32 if the reading
        says so. With ``scores.views``, also ``targets@teacher [n, K_t]``: the scores averaged over several
        shifted or flipped views of each image.
    """
    name, device = teacher.name, teacher.preprocess.mean.device
    images = to_device(batch[reading.images.get(name, IMAGE)], device)
    mixed = autocast(device, amp if device.type == "cuda" else "none")
    with mixed, teacher.read_embedding(reading.last_layers.get(name)) as read:
        features, scores = teacher.features(images, reading.paths.get(name, {}))
    columns = {SCORES: scores.float()}
    if read is not None:
        columns[EMBEDDING] = _rounded(reading, EMBEDDING, read.embedding)
    for tap, feature in features.items():
        columns[tap] = _rounded(reading, tap, resize_features(feature, reading.spaces[tap]))
    if reading.scores.views:
        # Shifts are in pixels of the student's images.
        scale = images.shape[-1] / batch[IMAGE].shape[-1]
        with mixed:
            averaged = score_views(teacher.scores, images, reading.scores, scores, scale)
        columns[TARGETS] = averaged.float()
    return {feature_column(column, name): values for column, values in to_numpy(columns).items()}


def _rounded(reading: ReadSpec, column: str, values: Tensor) -> Tensor:
    return values.float() if column in reading.float32 else values.half()
