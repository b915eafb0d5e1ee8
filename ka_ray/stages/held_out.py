"""Judge students without labels, on stored images that they did not learn from.

The ensemble is no fair judge of starts: where one teacher's scores are higher for all images, it follows that
teacher, and a start that has forgotten the others agrees with it. So a start is judged by the teacher that it
follows worst, each teacher among its own classes, where its scores need no common scale with those of others.

Joint learning begins with a student that follows all teachers, and learns from the ensemble's scores, behind
a gate if there is one. Its epochs are judged by these. Where an image is not its own, a teacher tells little,
and a student that knows whose image it is would lose by the teacher that it follows worst.

Shapes: B images, K classes of the student, T teachers, K_t classes of teacher t.
"""

import math
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
from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES, IMAGES, Store
from ka_ray.images.views import IMAGE
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.stages.inputs import StageInputs
from ka_ray.training.batches import Batches, hold_out_rows


@dataclass(frozen=True)
class Quality:
    """How well scores fit those of the teachers on held-out images.

    Attributes:
        agreement: Share of the images for which student and ensemble predict the same class.
        divergence: Mean KL divergence of the student's distribution over the classes from the ensemble's.
        worst_divergence: Mean KL divergence from the teacher's distribution over its own classes, for the
            teacher for which it is the largest.
        images: Number of images.
    """

    agreement: float
    divergence: float
    worst_divergence: float
    images: int

    def is_better_than(self, other: "Quality") -> bool:
        """Return whether the worst followed teacher is followed better: the judge of starts.

        If it is followed equally well, to a hundredth of a nat, the divergence from the ensemble decides: how
        the teachers' scores compare with each other.
        """
        return self._key < other._key

    def is_closer_than(self, other: "Quality") -> bool:
        """Return whether the ensemble is followed better: the judge of what joint learning keeps."""
        return self._key[1] < other._key[1]

    @property
    def _key(self) -> tuple[float, float]:
        known = math.isfinite(self.worst_divergence) and math.isfinite(self.divergence)
        if not known:
            return math.inf, math.inf
        # Of networks that follow the ensemble exactly, rounding errors would choose: the first one is kept.
        return round(self.worst_divergence, 2), round(self.divergence, 6)

    def to_json(self) -> dict[str, Any]:
        """Return the quality as a JSON object."""
        return asdict(self)


def joint_rows(inputs: StageInputs) -> npt.NDArray[np.int64]:
    """Return the rows of the stored images that joint learning learns from; the others are held out.

    Args:
        inputs: Inputs of the stage.
    """
    return hold_out_rows(len(inputs.store(FEATURES, IMAGES)), inputs.config.seed)[0]


def split_feature_rows(inputs: StageInputs) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split the rows of the stored features like the images of joint learning: learned from, and held out.

    Args:
        inputs: Inputs of the stage.

    Returns:
        Rows of the store of features, which come first in that of all images.
    """
    stored = len(inputs.store(FEATURES))
    learned, held_out = hold_out_rows(len(inputs.store(FEATURES, IMAGES)), inputs.config.seed)
    return learned[learned < stored], held_out[held_out < stored]


def held_out_batches(inputs: StageInputs) -> Batches:
    """Return the images that joint learning does not learn from, with the teachers' scores.

    Args:
        inputs: Inputs of the stage.
    """
    store, config = inputs.store(FEATURES, IMAGES), inputs.config
    rows = hold_out_rows(len(store), config.seed)[1]
    return judging_batches(inputs, store, [IMAGE, SCORES], config.joint.batch_size, rows)


def judging_batches(
    inputs: StageInputs, store: Store, columns: list[str], batch_size: int, rows: npt.NDArray[np.int64]
) -> Batches:
    """Return held-out images for single passes, in which some ranks may have none.

    Args:
        inputs: Inputs of the stage.
        store: The stored images.
        columns: Names of the columns to read.
        batch_size: Number of images of a global batch, if there are as many.
        rows: The rows that are held out.

    Raises:
        InputError: There are none.
    """
    if not len(rows):
        raise InputError(
            f"images: none of the {len(store)} stored images of {', '.join(columns)} is held out, so that "
            "nothing can be judged; give more images (extract.images)"
        )
    size, seed = min(batch_size, len(rows)), inputs.config.seed
    return Batches(store, columns, size, seed, device=inputs.device, rows=rows, trains=False)


@torch.no_grad()
def measure_quality(
    compute_scores: Callable[[Tensor], Tensor], held_out: Batches, label_sets: LabelSets
) -> Quality:
    """Compare scores with those of the teachers on held-out images; every rank gets the same result.

    A rank without images adds nothing to it.

    Args:
        compute_scores: Maps images `[B, 3, H, W]` to scores `[B, K]`, in eval mode.
        held_out: The images, with the stored scores of the teachers.
        label_sets: How the teachers' scores are combined.
    """
    sums = torch.zeros(3 + len(label_sets.by_teacher), dtype=torch.float64, device=held_out.device)
    divergence = partial(softened_kl, temperature=1.0)
    for batch in held_out.single_pass():
        scores, teacher_scores = compute_scores(batch[IMAGE]).float(), batch[SCORES].float()
        same = scores.argmax(dim=1) == label_sets.amalgamate(teacher_scores).argmax(dim=1)
        losses = [label_sets.loss(scores, teacher_scores, divergence)]
        losses += [
            divergence(scores[:, label_sets.columns(teacher)], own)
            for teacher, own in zip(label_sets.by_teacher, label_sets.split(teacher_scores), strict=True)
        ]
        # Means over the batch become sums, which batches and ranks add up.
        parts = [same.float().mean(), scores.new_ones(()), *losses]
        sums += len(scores) * torch.stack(parts).double()
    agreeing, images, total, *per_teacher = sum_over_ranks(sums).tolist()
    return Quality(agreeing / images, total / images, max(per_teacher) / images, int(images))
