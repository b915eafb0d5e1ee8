"""Joint learning: the folded student end to end towards the amalgamated scores.

Shapes: B images, K classes of all teachers.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.amalgamation.scores import LabelSets
from ka_ray.config import JointConfig
from ka_ray.images.augment import augment
from ka_ray.student.network import Student
from ka_ray.teachers import Teacher


class JointLearner(nn.Module):
    """The student's loss against the amalgamated scores.

    Args:
        student: Learned in place.
        config: Loss and augmentation.
        label_sets: How the teachers' scores become one vector.
        teachers: Needed with augmentation, to score the very view that the student sees; else empty,
            and the stored scores are used.
    """

    def __init__(
        self, student: Student, config: JointConfig, label_sets: LabelSets, teachers: Sequence[Teacher] = ()
    ) -> None:
        super().__init__()
        if config.augment.on and not teachers:
            raise ValueError("joint learning with augmentation needs the teachers")
        self.student = student
        self.config = config
        self._label_sets = label_sets
        self._teachers = list(teachers)  # a plain list: frozen, and no part of what DDP synchronises

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss of a batch with ``image [B, 3, H, W]``, and ``scores [B, K]`` or ``draws [B, 3]``."""
        images = batch["image"]
        if self.config.augment.on:
            images = augment(images, self.config.augment, batch["draws"])
            target = self._label_sets.amalgamate([teacher.scores(images) for teacher in self._teachers])
        else:
            target = batch["scores"]
        return {"loss": self._loss(self.student(images), target)}

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        if self.config.loss == "mse":
            return 0.5 * functional.mse_loss(scores, target)
        return softened_kl(scores, target, self.config.temperature)


def softened_kl(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Compute ``T^2 KL(softmax(target / T) || softmax(scores / T))``, the mean over images.

    The factor keeps the gradient's size independent of T (Hinton, Vinyals and Dean, 2015).
    """
    log_student = torch.log_softmax(scores / temperature, dim=1)
    log_target = torch.log_softmax(target / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
