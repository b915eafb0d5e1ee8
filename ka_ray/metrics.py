"""Metrics of a student: counts that can be summed over batches, and the accuracies computed from them.

The ensemble predicts from the amalgamated scores: the scores of all teachers combined into one vector over
the classes of all teachers. Views are the changed copies of an image (flipped, shifted) that the config key
``scores.views`` names.

Shapes: B images, K classes of all teachers, K_t classes of teacher t, T teachers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ka_ray.sparse_counts import Scores, SparseCounts, confusion, count_predicted

CountArray = npt.NDArray[np.int64]
"""Numbers of images, one per teacher for example."""


@dataclass(frozen=True)
class Counts:
    """Counts over a set of images; the counts of disjoint sets add up to those of their union.

    Attributes:
        images: Number of images.
        agreed: Number of images for which the student and the ensemble predict the same class.
        compared: Number of images for which both the student and the ensemble made a prediction.
        student: Confusion matrix of the student, rows true classes, columns predicted classes, ``[K, K]``.
        ensemble: Confusion matrix of the ensemble, i.e. of the amalgamated scores, ``[K, K]``.
        over_views: Confusion matrix of the amalgamated scores averaged over views, ``[K, K]``.
        predicted: Number of images per class that the ensemble predicts, with and without labels, ``[K]``.
        teacher_images: Number of labelled images whose class the teacher knows, one per teacher, ``[T]``.
        teacher_correct: How many of those the teacher itself classifies correctly, ``[T]``.
        student_correct: How many of those the student classifies correctly if it may choose only among the
            teacher's classes, ``[T]``.
        gated: Confusion matrix of the ensemble whose owners a gate chooses, ``[K, K]``.
        owners: Numbers of images, ``[4]``: those that a gate has seen; of them, those for which it prefers
            another owner than the ensemble; those whose class a teacher knows and that the ensemble, or the
            gate, gives to such a teacher. See :func:`count_owners`.
    """

    images: int
    agreed: int
    compared: int
    student: SparseCounts
    ensemble: SparseCounts
    over_views: SparseCounts
    predicted: SparseCounts
    teacher_images: CountArray
    teacher_correct: CountArray
    student_correct: CountArray
    gated: SparseCounts
    owners: CountArray

    def __add__(self, other: "Counts") -> "Counts":
        return Counts.sum((self, other))

    @staticmethod
    def sum(parts: Sequence["Counts"]) -> "Counts":
        """Add up the counts of disjoint sets of images, of at least one; faster than one after the other."""
        columns = ([getattr(part, field.name) for part in parts] for field in fields(Counts))
        return Counts(*(_add_up(column) for column in columns))

    @staticmethod
    def zeros(num_classes: int, num_teachers: int) -> "Counts":
        """Return the counts of an empty set of images, the start of a sum.

        Args:
            num_classes: K, the number of classes of all teachers.
            num_teachers: T, the number of teachers.
        """
        square, row = SparseCounts.zeros(num_classes, num_classes), SparseCounts.zeros(num_classes)
        line = np.zeros(num_teachers, np.int64)
        none = np.zeros(4, np.int64)
        return Counts(0, 0, 0, square, square, square, row, line, line, line, square, none)


def _add_up(column: Sequence[Any]) -> Any:
    return SparseCounts.sum(column) if isinstance(column[0], SparseCounts) else sum(column[1:], column[0])


@dataclass(frozen=True)
class Gated:
    """What a gate says of a batch.

    Attributes:
        scores: The gated ensemble's scores, ``[B, K]``.
        before: The owner that the ensemble prefers, ``[B]``, an index of a teacher.
        owners: The owner that the gate prefers, ``[B]``.
    """

    scores: Scores
    before: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]


def count_owners(gated: Gated | None, has_teacher_class: Sequence[npt.NDArray[np.bool_]]) -> CountArray:
    """Count owners as :class:`Counts` has them; ``has_teacher_class``: per teacher, ``[B]``."""
    if gated is None:
        return np.zeros(4, np.int64)
    knows, images = np.stack(has_teacher_class), np.arange(len(gated.owners))
    right = [int(knows[owners, images].sum()) for owners in (gated.before, gated.owners)]
    return np.array([len(images), int((gated.before != gated.owners).sum()), *right], np.int64)


def count_batch(
    targets: npt.NDArray[np.int64],
    student: Scores | None,
    ensemble: Scores | None,
    teachers: Sequence[Scores],
    columns: Sequence[Sequence[int]],
    over_views: Scores | None = None,
    gated: Gated | None = None,
) -> Counts:
    """Count one batch of images.

    Args:
        targets: The true class of every image, ``[B]``, an index into the K classes; -1 where it is unknown.
        student: The student's scores, ``[B, K]``; None if there is no student.
        ensemble: The amalgamated scores, ``[B, K]``; None if there are no teachers.
        teachers: Each teacher's own scores, ``[B, K_t]``; empty if there are no teachers.
        columns: For each teacher, the indices of its classes among the K, in the order of its own scores.
        over_views: The amalgamated scores averaged over views, ``[B, K]``; None if no views are configured.
        gated: What a gate says; None if there is none. The student is then compared with the gated ensemble.
    """
    followed = ensemble if gated is None else gated.scores
    num_classes = max(max(c) for c in columns) + 1
    agreed, compared = _count_agreement(student, followed)
    # Images of unknown class (-1) belong to no teacher, so they never count as right or wrong.
    has_teacher_class = [np.isin(targets, c) for c in columns]
    among_own = [] if student is None else [student[:, c] for c in columns]
    return Counts(
        images=len(targets),
        agreed=agreed,
        compared=compared,
        student=confusion(targets, student, num_classes),
        ensemble=confusion(targets, ensemble, num_classes),
        over_views=confusion(targets, over_views, num_classes),
        predicted=count_predicted(followed, num_classes),
        teacher_images=np.array([mask.sum() for mask in has_teacher_class], np.int64),
        teacher_correct=_count_correct(targets, list(teachers), has_teacher_class, columns),
        student_correct=_count_correct(targets, among_own, has_teacher_class, columns),
        gated=confusion(targets, None if gated is None else gated.scores, num_classes),
        owners=count_owners(gated, has_teacher_class),
    )


def _count_agreement(student: Scores | None, ensemble: Scores | None) -> tuple[int, int]:
    """Return on how many images both predict the same class, and how many are compared."""
    if student is None or ensemble is None:
        return 0, 0
    return int((student.argmax(1) == ensemble.argmax(1)).sum()), len(student)


def _count_correct(
    targets: npt.NDArray[np.int64],
    scores: Sequence[Scores],
    has_teacher_class: Sequence[npt.NDArray[np.bool_]],
    columns: Sequence[Sequence[int]],
) -> CountArray:
    """Count for each teacher how many images of its classes are classified correctly.

    Args:
        targets: The true class of every image, ``[B]``.
        scores: For each teacher, scores over its classes only, ``[B, K_t]``; empty: none is correct.
        has_teacher_class: For each teacher, whether an image is of one of its classes, ``[B]``.
        columns: For each teacher, the indices of its classes among the K.

    Returns:
        Numbers of images, ``[T]``.
    """
    correct = np.zeros(len(columns), np.int64)
    for i, own in enumerate(scores):
        mask = has_teacher_class[i]
        # The argmax is an index into the teacher's own classes; `columns` maps it into the K classes.
        predicted = np.asarray(columns[i])[own.argmax(1)]
        correct[i] = int((predicted[mask] == targets[mask]).sum())
    return correct


def compute_accuracies(counts: Counts, teachers: Sequence[str]) -> dict[str, Any]:
    """Turn counts into the ``accuracy`` section of the report.

    Args:
        counts: The counts over all images.
        teachers: The teachers' names, in the order of the counts.

    Returns:
        ``union``, ``ensemble``, ``ensemble_over_views``, ``gate``, ``agreement``, ``constant_agreement``
        and ``per_teacher.<name>.{teacher, student}``: shares in [0, 1], or None where
        nothing was measured (``union`` is the student's accuracy over all K classes); and ``images`` and
        ``labelled``: the number of all and of labelled images that they were measured on.
    """
    has_student = counts.student.total > 0
    per_teacher: Mapping[str, dict[str, float | None]] = {
        name: {
            # If there is no ensemble, no teacher was run. The accuracy is then None: 0 would be wrong.
            "teacher": _share(
                counts.teacher_correct[i], counts.teacher_images[i] if counts.ensemble.total else 0
            ),
            "student": _share(counts.student_correct[i], counts.teacher_images[i] if has_student else 0),
        }
        for i, name in enumerate(teachers)
    }
    return {
        "union": _share_correct(counts.student),
        "ensemble": _share_correct(counts.ensemble),
        "ensemble_over_views": _share_correct(counts.over_views),
        "gate": _compute_gate_accuracies(counts) if counts.owners[0] else None,
        "agreement": _share(counts.agreed, counts.compared),
        "constant_agreement": _share(counts.predicted.largest, counts.predicted.total),
        "per_teacher": per_teacher,
        "images": counts.images,
        # Student or ensemble may be missing; if both exist, they were counted on the same images.
        "labelled": max(counts.student.total, counts.ensemble.total),
    }


def _compute_gate_accuracies(counts: Counts) -> dict[str, float | None]:
    """Return what a gate is worth: accuracies of the gated ensemble, of owners, and of an oracle."""
    images, changed, right, gated_right = counts.owners.tolist()
    labelled = counts.gated.total
    shared = counts.teacher_images.sum() > labelled  # classes of several teachers have no single owner
    return {
        "ensemble": _share_correct(counts.gated),
        "changed": changed / images,
        "owner_accuracy": _share(gated_right, labelled),
        "ungated_owner_accuracy": _share(right, labelled),
        "oracle": None if shared else _share(counts.teacher_correct.sum(), counts.teacher_images.sum()),
    }


def _share_correct(confusion: SparseCounts) -> float | None:
    return _share(confusion.diagonal, confusion.total)


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None
