"""Check before any work starts that labels of images are classes, and say which are not."""

from collections.abc import Iterator, Sequence

import numpy as np

from ka_ray.config import TeacherConfig
from ka_ray.images.split import ImageSet, check_labels, count_labels
from ka_ray.reports.labels import describe_unmatched, match_labels, require_match

ADVICE = "if they are no classes at all, say so: labelled: false for folders, no label_column for tables"
"""What to do in a run, which needs no labels."""


def check_evaluation_labels(images: ImageSet, classes: Sequence[str], whose: str) -> str:
    """Check the labels of images on which accuracies are measured.

    Args:
        images: The evaluation images.
        classes: The classes of the network that is evaluated.
        whose: Whose classes they are, such as ``the student``.

    Returns:
        Which of the images are left out because of their labels; empty if none are, or if the source does not
        list its labels. Then they are counted when the images are read.

    Raises:
        InputError: The source has labels, and none of them is a class.
    """
    # Of the whole source: a few images that were held out or sampled may be of other classes by chance.
    of_source = count_labels(images.with_ids(np.arange(images.source.num_images)))
    if of_source is None:
        return ""
    require_match(match_labels(of_source, classes), classes, whose, ADVICE)
    note = describe_unmatched(match_labels(count_labels(images) or {}, classes), whose)
    return f"evaluation: {note}" if note else ""


def check_training_labels(images: ImageSet, teachers: Sequence[TeacherConfig]) -> Iterator[str]:
    """Check the labels of the images that teachers learn from.

    Args:
        images: The training images.
        teachers: The teachers that are trained.

    Yields:
        Which of the images no teacher learns from, because their labels are no classes of any.

    Raises:
        InputError: There is no image of a class.
    """
    for teacher in teachers:
        counts = check_labels(teacher.classes, images, f"teacher {teacher.name}")
    classes = list(dict.fromkeys(name for teacher in teachers for name in teacher.classes))
    whose = ", ".join(teacher.name for teacher in teachers)
    note = "" if counts is None else describe_unmatched(match_labels(counts, classes), f"teacher {whose}")
    if note:
        yield f"teaching: {note}"
