"""The verdict on a run: whether the student is as good as the ensemble of its teachers, and by how much."""

import math
from typing import Literal, NamedTuple

from ka_ray.reports.sections import Accuracy
from ka_ray.reports.warnings import is_far_under, learned_nothing, rarely_agrees

CHANCE_ERRORS = 2.0
"""A difference of accuracies of so many standard errors or fewer may be chance."""

TOO_COARSE = 0.05
"""Smallest difference of accuracies, in [0, 1], that images must be able to show for a verdict."""

ROUNDING = 0.1
"""Percentages are rounded to multiples of this."""

Grade = Literal["better", "equal", "worse", "bad", "unmeasured"]


class Verdict(NamedTuple):
    """Whether the student is as good as the ensemble of its teachers."""

    grade: Grade
    """bad: far from what it could be. unmeasured: there are no labels or too few, and nothing is known to be
    wrong."""
    number: str
    """The figure that decides, such as ``+0.8`` percentage points; empty if nothing was measured."""
    unit: str
    """What the number is."""
    sentence: str
    """The verdict in one sentence, with the number in it."""


def judge(accuracy: Accuracy) -> Verdict:
    """Return the verdict on a student: the first line of every form of its report.

    With a gate, the student is compared with the ensemble with the gate, whose scores it learned from.

    Args:
        accuracy: The accuracies of the finished student.
    """
    gate = accuracy.gate
    ensemble = accuracy.ensemble if gate is None or gate.ensemble is None else gate.ensemble
    if accuracy.union is not None and ensemble is not None:
        return _compare(accuracy, accuracy.union, ensemble)
    if accuracy.union is not None:
        share, images = _percent(accuracy.union), _images(accuracy.labelled)
        sentence = f"The student is right on {share} of {images}; no teachers were compared with it."
        return Verdict("unmeasured", share, "accuracy of the student", sentence)
    if accuracy.agreement is not None:
        return _judge_agreement(accuracy, accuracy.agreement)
    return Verdict("unmeasured", "", "", "How good the student is was not measured: no image has a label.")


def _compare(accuracy: Accuracy, student: float, ensemble: float) -> Verdict:
    # Of the rounded accuracies, so that a reader who subtracts them finds the same number.
    difference = round(100 * student, 1) - round(100 * ensemble, 1)
    points = f"{difference:+.1f}" if abs(difference) > ROUNDING / 2 else "0.0"
    measured = (
        f"{_percent(student)} of {_images(accuracy.labelled)} are right, against {_percent(ensemble)} "
        f"({points} points)"
    )
    teachers = "the ensemble of its teachers" + ("" if accuracy.gate is None else " with the gate")
    chance = CHANCE_ERRORS * _standard_error(accuracy, student, ensemble)
    grade: Grade
    if learned_nothing(accuracy):
        grade, claim = "bad", "The student has learned nothing from its teachers"
    elif is_far_under(accuracy):
        grade, claim = "bad", f"The student is far worse than {teachers}"
    elif abs(student - ensemble) <= chance and chance > TOO_COARSE:
        grade, claim = "unmeasured", f"Too few images to tell whether the student is as good as {teachers}"
    elif abs(student - ensemble) <= chance:
        within = "" if student == ensemble else ", within chance"
        grade, claim = "equal", f"The student is as good as {teachers}{within}"
    elif student > ensemble:
        grade, claim = "better", f"The student is better than {teachers}"
    else:
        grade, claim = "worse", f"The student is worse than {teachers}"
    return Verdict(grade, points, "percentage points, student minus ensemble", f"{claim}: {measured}.")


def _judge_agreement(accuracy: Accuracy, agreement: float) -> Verdict:
    share, images = _percent(agreement), _images(accuracy.images)
    measured = f"it predicts the same class as the ensemble of its teachers for {share} of {images}"
    unit = "agreement of student and ensemble"
    if learned_nothing(accuracy):
        return Verdict("bad", share, unit, f"The student has learned nothing from its teachers: {measured}.")
    if rarely_agrees(accuracy):
        return Verdict("bad", share, unit, f"The student seldom agrees with its teachers: {measured}.")
    sentence = f"Without labels, only agreement tells how good the student is: {measured}."
    return Verdict("unmeasured", share, unit, sentence)


def _standard_error(accuracy: Accuracy, student: float, ensemble: float) -> float:
    """Return an upper bound of the standard error of the difference of the accuracies."""
    apart = student * (1 - student) + ensemble * (1 - ensemble)  # as if measured on different images
    if accuracy.agreement is not None and accuracy.labelled == accuracy.images:
        # Only an image for which both predict different classes can add to the difference, at most 1.
        apart = min(apart, 1 - accuracy.agreement)
    return math.sqrt(apart / max(accuracy.labelled, 1))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"
