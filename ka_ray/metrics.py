"""How a student is judged: counts over images that merge, and the accuracies made from them.

Shapes: B images, K classes of all teachers, K_t classes of teacher t.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating[Any]]
Counts1d = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Counts over a set of images; those of disjoint sets add up.

    Attributes:
        images: All images.
        agreed: Images on which student and ensemble say the same.
        compared: Images for which both spoke.
        student: Confusion of the student, rows true classes, columns its argmax, ``[K, K]``.
        ensemble: The same of the amalgamated scores.
        over_views: The same of the amalgamated scores averaged over views of the image.
        teacher_images: Labelled images of each teacher's classes, ``[T]``.
        teacher_correct: Of these, right by the teacher itself, ``[T]``.
        student_correct: Of these, right by the student among the teacher's classes, ``[T]``.
    """

    images: int
    agreed: int
    compared: int
    student: Counts1d
    ensemble: Counts1d
    over_views: Counts1d
    teacher_images: Counts1d
    teacher_correct: Counts1d
    student_correct: Counts1d

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @staticmethod
    def zeros(num_classes: int, num_teachers: int) -> "Counts":
        """Make the counts of no images."""
        square = np.zeros((num_classes, num_classes), np.int64)
        line = np.zeros(num_teachers, np.int64)
        return Counts(0, 0, 0, square, square, square, line, line, line)


def count_batch(
    targets: npt.NDArray[np.int64],
    student: Scores | None,
    ensemble: Scores | None,
    teachers: Sequence[Scores],
    columns: Sequence[Sequence[int]],
    over_views: Scores | None = None,
) -> Counts:
    """Count one batch.

    Args:
        targets: True class of every image, an index into the K classes; -1 where unknown.
        student: `[B, K]`, or None where there is no student.
        ensemble: Amalgamated scores `[B, K]`, or None where there are no teachers.
        teachers: Each teacher's own scores `[B, K_t]`; empty where there are none.
        columns: For each teacher, where its classes stand among the K.
        over_views: Amalgamated scores averaged over views `[B, K]`, or None where there are no views.
    """
    num_classes = max(max(c) for c in columns) + 1
    both = student is not None and ensemble is not None
    agreed = int((student.argmax(1) == ensemble.argmax(1)).sum()) if both else 0  # type: ignore[union-attr]
    known = [np.isin(targets, c) for c in columns]
    return Counts(
        images=len(targets),
        agreed=agreed,
        compared=len(targets) if both else 0,
        student=confusion(targets, student, num_classes),
        ensemble=confusion(targets, ensemble, num_classes),
        over_views=confusion(targets, over_views, num_classes),
        teacher_images=np.array([k.sum() for k in known], np.int64),
        teacher_correct=_correct(targets, list(teachers), known, columns),
        student_correct=_correct(targets, [student[:, c] for c in columns], known, columns)
        if student is not None
        else np.zeros(len(columns), np.int64),
    )


def confusion(targets: npt.NDArray[np.int64], scores: Scores | None, num_classes: int) -> Counts1d:
    """Count (true class, argmax of the scores) over the images whose class is known: `[K, K]`."""
    if scores is None:
        return np.zeros((num_classes, num_classes), np.int64)
    known = targets >= 0
    flat = np.bincount(targets[known] * num_classes + scores.argmax(1)[known], minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes).astype(np.int64)


def _correct(
    targets: npt.NDArray[np.int64],
    scores: Sequence[Scores],
    known: Sequence[npt.NDArray[np.bool_]],
    columns: Sequence[Sequence[int]],
) -> Counts1d:
    correct = np.zeros(len(columns), np.int64)
    for i, own in enumerate(scores):
        said = np.asarray(columns[i])[own.argmax(1)]
        correct[i] = int((said[known[i]] == targets[known[i]]).sum())
    return correct


def compute_accuracies(counts: Counts, teachers: Sequence[str]) -> dict[str, Any]:
    """Turn counts into the report's ``accuracy`` section; what nothing speaks for is None.

    Returns:
        ``union``, ``ensemble``, ``ensemble_over_views``, ``agreement`` and
        ``per_teacher.<name>.{teacher, student}``, all in [0, 1], and the numbers of ``images`` and
        ``labelled`` ones behind them.
    """
    spoke = counts.student.sum() > 0
    per_teacher: Mapping[str, dict[str, float | None]] = {
        name: {
            "teacher": _share(
                counts.teacher_correct[i], counts.teacher_images[i] if counts.ensemble.sum() else 0
            ),
            "student": _share(counts.student_correct[i], counts.teacher_images[i] if spoke else 0),
        }
        for i, name in enumerate(teachers)
    }
    return {
        "union": _share(np.trace(counts.student), counts.student.sum()),
        "ensemble": _share(np.trace(counts.ensemble), counts.ensemble.sum()),
        "ensemble_over_views": _share(np.trace(counts.over_views), counts.over_views.sum()),
        "agreement": _share(counts.agreed, counts.compared),
        "per_teacher": per_teacher,
        "images": counts.images,
        "labelled": int(max(counts.student.sum(), counts.ensemble.sum())),
    }


def _share(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None
