"""Compute the accuracies of a report from counts of correct predictions."""

from collections.abc import Mapping, Sequence

from ka_ray.metrics import Counts, compute_accuracies
from ka_ray.reports.labels import match_labels
from ka_ray.reports.sections import Accuracy


def measure_accuracy(counts: Counts, teachers: Sequence[str]) -> Accuracy:
    """Compute all accuracies of a student and its teachers, or of the teachers if there is no student.

    Args:
        counts: Confusion matrices and counts of correct predictions over all evaluation images.
        teachers: The names of the teachers, in stacking order.
    """
    return Accuracy.model_validate(compute_accuracies(counts, teachers))


def with_labels(accuracy: Accuracy, labels: Mapping[str, int], classes: Sequence[str]) -> Accuracy:
    """Return accuracies that tell which labels are no classes, and which classes have no image.

    Args:
        accuracy: The accuracies.
        labels: Label -> its number of images; the empty label is that of images without one.
        classes: The classes.
    """
    match = match_labels(labels, classes)
    has_labels = bool(match.matched or match.unmatched)
    return accuracy.model_copy(
        update={"unmatched": match.unmatched, "missing": match.missing if has_labels else []}
    )
