"""The stage `joint`: train the folded student end to end towards the teachers' scores.

Shapes: B images, K_t classes of teacher t.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.gated_scores import gate_scores
from ka_ray.amalgamation.label_sets import softened_kl
from ka_ray.config import Config, JointConfig, ScoresConfig
from ka_ray.features.stack import OWNERS, SCORES
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.images.augment import NUM_VIEW_DRAWS, augment, score_views
from ka_ray.images.views import IMAGE
from ka_ray.numerics.memory_format import move_network
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.stages.held_out import held_out_batches, joint_rows
from ka_ray.stages.inputs import StageInputs, history_to_json, load_stage
from ka_ray.stages.joint_attempts import fit_from_start, lowers_rate
from ka_ray.stages.kept import START, KeptStudent
from ka_ray.stages.layers_learner import half_mse
from ka_ray.stages.teacher import ClassifierLearner, class_targets
from ka_ray.student import Student
from ka_ray.student.batch_norms import recalibrate_batch_norms
from ka_ray.teachers import Teacher, load_teacher
from ka_ray.training.batches import Batches
from ka_ray.training.network_call import NetworkCall


def needs_teacher_scores(config: JointConfig, scores: ScoresConfig) -> bool:
    """Return whether the teachers must score the augmented images during training.

    Otherwise the stored scores are used. Scores that are averaged over an image and its mirror image are the
    same for both. So if the only augmentation is mirroring, and ``scores.views`` contains ``flip``, the
    stored scores are right for the augmented images, too.

    Args:
        config: Section `joint` of the config.
        scores: Section `scores` of the config.
    """
    return config.augment.shift > 0 or (config.augment.flip and "flip" not in scores.views)


class JointLearner(nn.Module):
    """Learner of the student, with a loss between its scores and the teachers' scores.

    Args:
        student: Student to train, in place.
        config: Section `joint` of the config: loss and augmentation.
        scores: Section `scores` of the config: the views over which the teachers' scores are averaged.
        teachers: Teachers that score the augmented images; required if :func:`needs_teacher_scores`. If
            empty, the stored scores are used.
        columns: Teacher -> column with its images; the column ``image`` for teachers that are not named.

    Raises:
        ValueError: Teachers are required, but none are given.
    """

    def __init__(
        self,
        student: Student,
        config: JointConfig,
        scores: ScoresConfig,
        teachers: Sequence[Teacher] = (),
        columns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._scores_augmented = needs_teacher_scores(config, scores)
        if self._scores_augmented and not teachers:
            raise ValueError(
                f"joint learning with {config.augment!r} needs the teachers to score the augmented images"
            )
        self.student = student
        self._call_student = NetworkCall(student, config.amp, config.compile)
        self.config, self._scores, self._columns = config, scores, columns or {}
        self._label_sets = student.spec.unified_label_sets
        # A plain list instead of a ModuleList: teachers are frozen, so DDP must not synchronise them, and
        # train() must not put them into training mode.
        self._teachers = list(teachers)
        self._divergence: Callable[[Tensor, Tensor], Tensor] = half_mse
        if config.loss == "kl":
            self._divergence = partial(softened_kl, temperature=config.temperature)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of a batch as ``{"loss": scalar}``.

        Args:
            batch: Column ``image [B, C, H, W]``, and another one per teacher that gets other images, if
                teachers score augmented images; with augmentation ``draws [B, 3]``, the random numbers that
                decide how each image is augmented; with a gate, ``owners [B, N]``; and all teachers'
                scores side by side, ``scores [B, sum of K_t]``, unless the teachers score the augmented
                images.
        """
        images = self._augmented(batch, IMAGE)
        if self._scores_augmented:
            teacher_scores = torch.cat([self._score(teacher, batch) for teacher in self._teachers], dim=1)
            if self._scores.gated:  # whose image it is does not depend on the view
                teacher_scores = gate_scores(self._label_sets, teacher_scores, batch[OWNERS])
        else:
            teacher_scores = batch["scores"]
        # The rule `conditional` always compares by KL divergence; without `loss: kl` it is not softened.
        temperature = self.config.temperature if self.config.loss == "kl" else 1.0
        scores = self._call_student(images)
        loss = self._label_sets.loss(scores, teacher_scores, self._divergence, temperature=temperature)
        return {"loss": loss}

    def _augmented(self, batch: Mapping[str, Tensor], column: str) -> Tensor:
        """Return the images of the student or of a teacher, all augmented in the same way."""
        if not self.config.augment.on:
            return batch[column]
        return augment(batch[column], self.config.augment, batch["draws"], self._scale(batch, column))

    def _score(self, teacher: Teacher, batch: Mapping[str, Tensor]) -> Tensor:
        column = self._columns.get(teacher.name, IMAGE)
        images, scale = self._augmented(batch, column), self._scale(batch, column)
        return score_views(teacher.scores, images, self._scores, scale=scale)

    @staticmethod
    def _scale(batch: Mapping[str, Tensor], column: str) -> float:
        """Return the factor of shifts, which are in pixels of the student's images."""
        return batch[column].shape[-1] / batch[IMAGE].shape[-1]


def chooses_student(config: Config) -> bool:
    """Return whether the best student is kept, for which some images are held out from joint learning.

    The baseline from labels keeps its last student: agreement with the teachers is not what it learns.

    Args:
        config: Config of the run.
    """
    return config.joint.keep == "best" and config.baseline != "scratch"


RECALIBRATION_BATCHES = 20
"""Number of batches from which the student's batch norm statistics are measured before joint learning."""


def learn_jointly(inputs: StageInputs) -> tuple[nn.Module, dict[str, Any]]:
    """Train the student end to end, from its trained layers, its start or, as a baseline, random weights.

    Returns:
        The student, and the stage's summary with one record per epoch.
    """
    student = Student(inputs.plan.spec)
    if inputs.config.learns_layers:
        load_stage(inputs.folder, "layers", student)
        _recalibrate_batch_norms(inputs, student.to(inputs.device))
    elif inputs.config.student.start != "random":
        load_stage(inputs.folder, "start", student)
    if not inputs.config.joint.any_steps:
        return student, {"history": []}
    kept = KeptStudent(inputs.folder, held_out_batches(inputs)) if chooses_student(inputs.config) else None
    learner, batches = build_joint_learner(inputs, student)
    move_network(learner, inputs.device)
    if kept is not None and not kept.best:
        kept.offer(START, student)
    if kept is not None and kept.start_is_ensemble and lowers_rate(inputs.config.joint):
        return student, {"history": [], "choice": kept.to_json()}
    result, history = fit_from_start(inputs, student, learner, batches, kept)
    if kept is not None:
        kept.load_best(result)
    choice = None if kept is None else kept.to_json()
    return result, {"history": history_to_json(history), "choice": choice}


def build_joint_learner(inputs: StageInputs, student: Student) -> tuple[nn.Module, Batches]:
    """Build the learner that trains a student end to end, and its batches.

    Args:
        inputs: Inputs of the stage.
        student: Student to train, in place.

    Returns:
        A :class:`JointLearner`, or a :class:`ka_ray.stages.teacher.ClassifierLearner` for the baseline from
        labels; and the batches with the columns that it needs.
    """
    # Joint learning needs no features, so it uses the images without stored features, too.
    config, store = inputs.config.joint, inputs.store(FEATURES, IMAGES)
    rows = joint_rows(inputs) if chooses_student(inputs.config) else None
    draws = NUM_VIEW_DRAWS if config.augment.on else 0
    if inputs.config.baseline == "scratch":
        targets = class_targets(store, student.spec.classes, "baseline scratch")
        batches = inputs.batches("joint", store, ["image"], num_draws=NUM_VIEW_DRAWS, targets=targets)
        return ClassifierLearner(student, config.augment, config=config), batches
    teachers = []
    if needs_teacher_scores(config, inputs.config.scores):
        teachers = [load_teacher(teacher).to(inputs.device) for teacher in inputs.config.teachers]
    by_teacher = inputs.plan.views.teacher_columns
    learner = JointLearner(student, config, inputs.config.scores, teachers, by_teacher)
    own = [*by_teacher.values(), *([OWNERS] if inputs.config.scores.gated else [])]
    columns = dict.fromkeys([IMAGE, *own]) if teachers else [IMAGE, SCORES]
    return learner, inputs.batches("joint", store, list(columns), num_draws=draws, rows=rows)


def _recalibrate_batch_norms(inputs: StageInputs, student: Student) -> None:
    """Replace the batch norm statistics of the codes by those of the student's own features.

    The layers were trained on codes, but from here on each layer receives the student's own features.
    """
    if any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in student.modules()):
        batches = inputs.batches("joint", inputs.store(FEATURES, IMAGES), ["image"])
        # An epoch's order is shuffled, because stored images may be sorted by class. Epoch 0 has an order of
        # its own: training starts with epoch 1.
        shuffled = islice(batches.epoch(0), RECALIBRATION_BATCHES)
        images = (batch["image"] for batch in shuffled)
        recalibrate_batch_norms(student, images, sum_over_ranks)
