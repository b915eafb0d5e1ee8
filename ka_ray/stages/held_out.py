"""Judge students without labels, on stored images that they did not learn from.

Shapes: B images, K classes of the student.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ka_ray.amalgamation import LabelSets
from ka_ray.amalgamation.label_sets import softened_kl
from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.views import IMAGE
from ka_ray.numerics.ranks import sum_over_ranks, world_size
from ka_ray.stages.inputs import StageInputs
from ka_ray.training.batches import Batches, hold_out_rows


@dataclass(frozen=True)
class Quality:
    """How well scores fit those of the teachers on held-out images.

    Attributes:
        agreement: Share of the images for which student and ensemble predict the same class.
        divergence: Mean KL divergence of the student's distribution over the classes from the ensemble's.
        images: Number of images.
    """

    agreement: float
    divergence: float
    images: int

    def is_better_than(self, other: "Quality") -> bool:
        """Return whether agreement is higher; if it is the same, whether the divergence is smaller."""
        return (self.agreement, -self.divergence) > (other.agreement, -other.divergence)

    def to_json(self) -> dict[str, Any]:
        """Return the quality as a JSON object."""
        return asdict(self)


def joint_rows(inputs: StageInputs) -> npt.NDArray[np.int64]:
    """Return the rows of the stored images that joint learning learns from; the others are held out.

    Args:
        inputs: Inputs of the stage.
    """
    return hold_out_rows(len(inputs.store(FEATURES, IMAGES)), inputs.config.seed)[0]


def held_out_batches(inputs: StageInputs) -> Batches:
    """Return the images that joint learning does not learn from, with the teachers' scores.

    Args:
        inputs: Inputs of the stage.
    """
    store, config = inputs.store(FEATURES, IMAGES), inputs.config
    rows = hold_out_rows(len(store), config.seed)[1]
    size = min(max(config.joint.batch_size, world_size()), len(rows))
    return Batches(store, [IMAGE, SCORES], size, config.seed, device=inputs.device, rows=rows)


@torch.no_grad()
def measure_quality(
    compute_scores: Callable[[Tensor], Tensor], held_out: Batches, label_sets: LabelSets
) -> Quality:
    """Compare scores with those of the teachers on held-out images; every rank gets the same result.

    Args:
        compute_scores: Maps images `[B, 3, H, W]` to scores `[B, K]`, in eval mode.
        held_out: The images, with the stored scores of the teachers.
        label_sets: How the teachers' scores are combined.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=held_out.device)
    divergence = partial(softened_kl, temperature=1.0)
    for batch in held_out.single_pass():
        scores, teacher_scores = compute_scores(batch[IMAGE]).float(), batch[SCORES]
        same = scores.argmax(dim=1) == label_sets.amalgamate(teacher_scores).argmax(dim=1)
        loss = label_sets.loss(scores, teacher_scores, divergence)
        sums += torch.stack([same.sum(), loss * len(scores), loss.new_tensor(len(scores))]).double()
    agreeing, total, images = sum_over_ranks(sums).tolist()
    return Quality(agreeing / images, total / images, int(images))
