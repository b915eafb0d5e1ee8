"""Compute the accuracies of a report from counts of correct predictions."""

from collections.abc import Sequence

from ka_ray.metrics import Counts, compute_accuracies
from ka_ray.reports.sections import Accuracy


def measure_accuracy(counts: Counts, teachers: Sequence[str]) -> Accuracy:
    """Compute all accuracies of a student and its teachers, or of the teachers if there is no student.

    Args:
        counts: Confusion matrices and counts of correct predictions over all evaluation images.
        teachers: The names of the teachers, in stacking order.
    """
    return Accuracy.model_validate(compute_accuracies(counts, teachers))
