"""One trial of `ka-ray tune`: compute a student from moments, train it jointly if asked for, and evaluate it.

A trial runs in one process. This module does not import Ray.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ka_ray.features.stack import SCORES
from ka_ray.features.store import Store
from ka_ray.numerics.memory_format import move_network
from ka_ray.numerics.ridge import RIDGES
from ka_ray.stages.inputs import StageInputs, build_average
from ka_ray.stages.joint import build_joint_learner
from ka_ray.stages.trial_solvers import TrialSolver
from ka_ray.student import Student, save_student
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, fit


@dataclass(frozen=True)
class TrialStudent:
    """Student of a trial.

    Attributes:
        widths: Tap -> number of code channels, or layer -> number of channels.
        ridge: Strength of ridge regression in each layer, in units of the layer's mean input variance. None:
            chosen per layer, on images that the moments keep apart; agreement is measured on other images.
        learning_rate: Peak learning rate of joint learning. None: no joint learning.
        folder: Folder in which the student is saved.
    """

    widths: Mapping[str, int]
    ridge: float | None
    learning_rate: float | None
    folder: Path


AgreementCallback = Callable[[dict[str, float]], None]
"""Function that is called with ``agreement`` (fraction of images), ``epochs`` (of joint learning so far) and
``seconds`` (since the start of the trial)."""


def run_trial(
    trial: TrialStudent,
    solver: TrialSolver,
    inputs: StageInputs,
    held_out: Path,
    report_agreement: AgreementCallback,
) -> None:
    """Compute a student, train it jointly if asked for, and measure its agreement with the ensemble.

    Args:
        trial: Student to compute.
        solver: Computes the students of all trials.
        inputs: Inputs of a training stage. Of its config, `seed`, `extract.batch_size` and the sections
            `joint` and `scores` are used.
        held_out: Folder with stored images and scores on which the agreement is measured.
        report_agreement: Called after each epoch of joint learning; without joint learning, once.
    """
    began = time.perf_counter()
    torch.manual_seed(inputs.config.seed)
    ridges = RIDGES if trial.ridge is None else (trial.ridge,)
    student = solver.solve(trial.widths, ridges, inputs).to(inputs.device)
    store = Store(held_out)
    batch_size = min(inputs.config.extract.images_per_call(inputs.device.type == "cuda"), len(store))
    held_out_batches = Batches(store, ["image", SCORES], batch_size, 0, device=inputs.device)

    def save_and_report(student: Student, epochs: int) -> None:
        # Saved before it is reported, so that a reported student exists even if this worker dies right after.
        save_student(student, trial.folder)
        agreement = measure_agreement(student, held_out_batches)
        seconds = time.perf_counter() - began
        report_agreement({"agreement": agreement, "epochs": epochs, "seconds": seconds})

    if trial.learning_rate is None:
        save_and_report(student, 0)
    else:
        _train_jointly(inputs, student, trial.learning_rate, save_and_report)


def _train_jointly(
    inputs: StageInputs, student: Student, learning_rate: float, after_epoch: Callable[[Student, int], None]
) -> None:
    """Train a student with the run's joint learning, but at the trial's learning rate."""

    def report(progress: Progress) -> None:
        if progress.epoch_ended:
            after_epoch(result, progress.epoch)

    learner, batches = build_joint_learner(inputs, student)
    move_network(learner, inputs.device)
    average = build_average(student, inputs.config.joint)
    result = student if average is None else average.module
    # Without a checkpoint, because trials are short: a trial that is lost starts again.
    settings = replace(inputs.settings("joint"), learning_rate=learning_rate, checkpoint=None)
    fit(learner, batches, settings, report, average)


@torch.inference_mode()
def measure_agreement(student: Student, batches: Batches) -> float:
    """Measure the agreement of a student with the ensemble of its teachers.

    Args:
        student: Student to evaluate; it is in its former mode (training or eval) afterwards.
        batches: Batches with the columns ``image`` and ``scores``.

    Returns:
        Fraction of images for which student and ensemble predict the same class.
    """
    # Called between the epochs of joint learning, so the mode must be restored.
    was_training = student.training
    student.eval()
    same = torch.zeros((), dtype=torch.int64, device=batches.device)
    for batch in batches.single_pass():
        ensemble = student.spec.unified_label_sets.amalgamate(batch[SCORES])
        same += (student(batch["image"]).argmax(dim=1) == ensemble.argmax(dim=1)).sum()
    student.train(was_training)
    return int(same) / len(batches.rows)
