"""Joint learning: the folded student end to end towards the teachers' scores.

Shapes: B images, K classes of all teachers together, K_t classes of teacher t.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.label_sets import softened_kl
from ka_ray.config import JointConfig, ScoresConfig
from ka_ray.features.stack import SCORES
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.augment import NUM_VIEW_DRAWS, augment, score_views
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.stages.inputs import StageInputs, epoch_students_folder, load_stage, records
from ka_ray.stages.layers_learner import half_mse
from ka_ray.stages.teacher import ClassifierLearner, class_targets
from ka_ray.student import Student, save_student
from ka_ray.student.batch_norms import recalibrate_batch_norms
from ka_ray.teachers import Teacher, load_teacher
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, fit


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
        self._label_sets = student.spec.unified_label_sets
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


SETTLING_BATCHES = 20
"""From so many batches a student's batch norms take their statistics before joint learning."""


def learn_jointly(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train the student end to end: after its layers, or as a baseline from random weights."""
    student = Student(inputs.plan.spec)
    if inputs.config.baseline is None:
        load_stage(inputs.folder, "layers", student)
        _settle(inputs, student.to(inputs.device))
    if not inputs.config.joint.any_steps:
        return student, {"history": []}
    learner, batches = joint_learner(inputs, student)
    epochs = epoch_students_folder(inputs.folder)

    def report(progress: Progress) -> None:
        if progress.epoch_ended and inputs.config.evaluation.each_epoch:
            save_student(student, epochs / f"{progress.epoch:03d}")
        inputs.report(progress)

    history = fit(learner.to(inputs.device), batches, inputs.settings("joint"), report)
    return student, {"history": records(history)}


def joint_learner(inputs: StageInputs, student: Student) -> tuple[nn.Module, Batches]:
    """Make what learns a student jointly, and the batches that it sees."""
    config, store = inputs.config.joint, inputs.store(FEATURES, IMAGES)
    draws = NUM_VIEW_DRAWS if config.augment.on else 0
    if inputs.config.baseline == "scratch":
        targets = class_targets(store, student.spec.classes, "baseline scratch")
        batches = inputs.batches("joint", store, ["image"], num_draws=NUM_VIEW_DRAWS, targets=targets)
        return ClassifierLearner(student, config.augment), batches
    teachers = []
    if needs_teachers(config, inputs.config.scores):
        teachers = [load_teacher(teacher).to(inputs.device) for teacher in inputs.config.teachers]
    learner = JointLearner(student, config, inputs.config.scores, teachers)
    columns = ["image"] if teachers else ["image", SCORES]
    return learner, inputs.batches("joint", store, columns, num_draws=draws)


def _settle(inputs: StageInputs, student: Student) -> None:
    """Let the folded student's batch norms take the statistics of its own features, not of the codes."""
    if any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in student.modules()):
        batches = inputs.batches("joint", inputs.store(FEATURES, IMAGES), ["image"])
        shuffled = islice(batches.epoch(0), SETTLING_BATCHES)  # stored images may be sorted by class
        images = (batch["image"] for batch in shuffled)
        recalibrate_batch_norms(student, images, sum_over_ranks)
