"""Joint learning: the folded student end to end towards the teachers' scores.

Shapes: B images, K classes of all teachers together, K_t classes of teacher t.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.scores import softened_kl
from ka_ray.config import JointConfig, ScoresConfig
from ka_ray.images.augment import augment, score_views
from ka_ray.student.layerwise import half_mse
from ka_ray.student.network import Student
from ka_ray.teachers import Teacher


def needs_teachers(config: JointConfig, scores: ScoresConfig) -> bool:
    """Whether augmented images must be scored anew.

    Scores averaged over both sides of an image are the same for its mirror image, so mirroring alone needs
    no teacher where ``scores.views`` has ``flip``.
    """
    return config.augment.shift > 0 or (config.augment.flip and "flip" not in scores.views)


class JointLearner(nn.Module):
    """The student's loss against the teachers' scores.

    Args:
        student: Learned in place.
        config: Loss and augmentation.
        scores: Over which views the teachers' scores are averaged where they are computed here.
        teachers: To score the very view that the student sees, where :func:`needs_teachers`; else empty, and
            the stored scores are used.
    """

    def __init__(
        self, student: Student, config: JointConfig, scores: ScoresConfig, teachers: Sequence[Teacher] = ()
    ) -> None:
        super().__init__()
        self._rescored = needs_teachers(config, scores)
        if self._rescored and not teachers:
            raise ValueError("joint learning with this augmentation needs the teachers")
        self.student = student
        self.config, self._scores = config, scores
        self._label_sets = student.spec.unified
        self._teachers = list(teachers)  # a plain list: frozen, and no part of what DDP synchronises
        self._divergence: Callable[[Tensor, Tensor], Tensor] = half_mse
        if config.loss == "kl":
            self._divergence = partial(softened_kl, temperature=config.temperature)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss of a batch.

        Args:
            batch: ``image [B, 3, H, W]``, with augmentation ``draws [B, 3]``, and all teachers' own
                ``scores [B, sum of K_t]`` unless the teachers score the augmented images here.
        """
        images = batch["image"]
        if self.config.augment.on:
            images = augment(images, self.config.augment, batch["draws"])
        if self._rescored:
            own = torch.cat([score_views(t.scores, images, self._scores) for t in self._teachers], dim=1)
        else:
            own = batch["scores"]
        temperature = self.config.temperature if self.config.loss == "kl" else 1.0
        scores = self.student(images)
        return {"loss": self._label_sets.loss(scores, own, self._divergence, temperature=temperature)}
