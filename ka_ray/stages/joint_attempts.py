"""Train a student jointly from its start, at a lower learning rate if it loses what the start had.

If no epoch is closer to the ensemble than the start, the student goes back to its start, and begins again
at a third of the rate; after a third of the epochs already if it has lost what the start had.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ka_ray.config import JointConfig
from ka_ray.numerics.ranks import rank, wait_for_all
from ka_ray.stages.inputs import StageInputs, build_average, epoch_students_folder
from ka_ray.stages.kept import START, KeptStudent
from ka_ray.student import Student, save_student
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, fit

RATE_STEP = 3.0
"""By what the learning rate is divided each time."""

MAX_LOWERED = 2
"""How often it is lowered at most."""


class _StartLost(Exception):
    """Raised on all ranks to end the training loop; its argument is the report of the last epoch."""

    def __init__(self, last: Progress) -> None:
        self.last = last


def lowers_rate(config: JointConfig) -> bool:
    """Return whether the learning rate is lowered where the student loses what its start had.

    A rate that the config gives stays.

    Args:
        config: Section `joint` of the config.
    """
    return config.keep == "best" and "learning_rate" not in config.model_fields_set


def fit_from_start(
    inputs: StageInputs, student: Student, learner: nn.Module, batches: Batches, kept: KeptStudent | None
) -> tuple[Student, Sequence[Progress]]:
    """Train a student end to end, in one attempt or several.

    Args:
        inputs: Inputs of the stage.
        student: The student as it starts, trained in place.
        learner: Its learner, on the device of the training.
        batches: Its batches.
        kept: Judges the student after each epoch; None: the last epoch is kept, at the rate of the config.

    Returns:
        The student, or the moving average of its weights, and the epochs; they count what was given up, too.
    """
    settings, given_up = inputs.settings("joint"), None
    while True:
        lowered = 0 if kept is None else len(kept.lost)
        rate = settings.learning_rate / RATE_STEP**lowered
        average = build_average(student, inputs.config.joint)
        averaged = None if average is None else average.module
        may_lower = lowers_rate(inputs.config.joint) and lowered < MAX_LOWERED
        report = _reporter(inputs, kept, student, averaged, given_up, may_lower, lowered + 1)
        try:
            history = fit(learner, batches, replace(settings, learning_rate=rate), report, average)
        except _StartLost as lost:
            given_up = lost.last
        except FloatingPointError:  # the loss of an epoch is not finite, on all ranks
            if kept is None or not may_lower or kept.best != START:
                raise
        else:
            history = [_add(record, given_up, lowered + 1) for record in history]
            if kept is None or not may_lower or kept.best != START:
                return averaged or student, history
            given_up = history[-1]
        assert kept is not None
        kept.load_best(student)  # the start
        _give_up(kept, rate, settings.checkpoint)


def _give_up(kept: KeptStudent, rate: float, checkpoint: Path | None) -> None:
    """Forget an attempt, but for the qualities of its students."""
    if rank() == 0 and checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    kept.give_up(rate)
    wait_for_all()  # before a rank looks for the checkpoint


def _reporter(
    inputs: StageInputs,
    kept: KeptStudent | None,
    student: Student,
    averaged: Student | None,
    given_up: Progress | None,
    may_lower: bool,
    attempt: int,
) -> Callable[[Progress], None]:
    """Return what is done with a report of the training loop."""
    result = student if averaged is None else averaged

    def report(progress: Progress) -> None:
        total, epoch = _add(progress, given_up, attempt), progress.epoch
        if progress.epoch_ended and rank() == 0 and inputs.config.evaluation.each_epoch:
            save_student(result, epoch_students_folder(inputs.folder) / f"{epoch:03d}")
        if progress.epoch_ended and kept is not None:
            kept.offer_epoch(epoch, student, averaged)
        inputs.report(total)
        is_due = progress.epoch_ended and epoch == math.ceil(progress.epochs / 3) < progress.epochs
        if kept is not None and may_lower and is_due and kept.has_lost_start(epoch):
            raise _StartLost(total)

    return report


def _add(progress: Progress, given_up: Progress | None, attempt: int) -> Progress:
    """Return a report of an attempt that also counts the images and the seconds of what was given up."""
    progress = replace(progress, attempt=attempt)
    if given_up is None:
        return progress
    return replace(
        progress,
        images=progress.images + given_up.images,
        seconds=progress.seconds + given_up.seconds,
        waited=progress.waited + given_up.waited,
    )
