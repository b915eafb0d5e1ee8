"""Try the teachers of a run on a few of its images, before anything has started."""

from collections.abc import Mapping, Sequence

import torch

from ka_ray.config import DESCRIPTIVE, Config, TeacherConfig
from ka_ray.images.split import ImageSet, read_sample
from ka_ray.runs.descriptive import check_descriptive
from ka_ray.runs.pixel_checks import find_other_pixels
from ka_ray.runs.size_checks import compare_sizes
from ka_ray.student.plan import Plan
from ka_ray.teachers import Teacher
from ka_ray.teachers.check import check_teacher, describe_answers


def try_teachers(
    config: Config, teachers: Sequence[Teacher], plan: Plan, images: ImageSet
) -> tuple[list[str], tuple[str, ...]]:
    """Try the networks that have weights on a few images.

    Args:
        config: The config of the run.
        teachers: Its teachers; each is used once, because it may be read anew for it.
        plan: Their taps and their views of the images.
        images: The training images.

    Returns:
        How they answer and what is odd, for the user; and what may be wrong, shown even with ``--quiet``.

    Raises:
        InputError: A network cannot work.
    """
    sample, column = read_sample(images), plan.views.read_columns.get(DESCRIPTIVE)
    pixels = None if sample is None or column is None else torch.from_numpy(sample[column])
    notes, warnings = [*check_descriptive(config, plan, pixels)], [*compare_sizes(config.teachers)]
    if sample is None:
        return notes, tuple(warnings)
    labels = sample["label"].tolist()
    for number, section in enumerate(config.teachers):
        if section.checkpoint is not None:
            pixels = torch.from_numpy(sample[plan.views.column(section.name)])
            found = _try_teacher(teachers[number], section, pixels, labels, plan.paths[section.name], images)
            notes, warnings = [*notes, *found[0]], [*warnings, *found[1]]
    return notes, tuple(warnings)


def _try_teacher(
    teacher: Teacher,
    section: TeacherConfig,
    pixels: torch.Tensor,
    labels: Sequence[str],
    paths: Mapping[str, str],
    images: ImageSet,
) -> tuple[list[str], list[str]]:
    """Try a teacher, which is let go of before the next one is read; return notes and warnings."""
    odd = check_teacher(teacher, pixels, labels, paths)
    other = find_other_pixels(teacher, section.preprocessing, images, pixels)
    return [*odd, describe_answers(teacher, pixels, labels)], [*other]
