"""Stack the teachers' features of one tap over channels.

Shapes: n images, S channels of all teachers together, *space height and width, K_t classes of a teacher.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ka_ray.errors import InputError

SCORES = "scores"
"""A teacher's scores, those of all of them side by side, and the student's stage that leads to its own."""

TARGETS = "targets"
"""A teacher's scores averaged over views of the image."""


def feature_column(tap: str, teacher: str) -> str:
    """Name the column that carries one teacher's features of one tap between the teacher stages."""
    return f"{tap}@{teacher}"


def stack_columns(
    columns: dict[str, npt.NDArray[Any]], taps: Sequence[str], teachers: Sequence[str], scores: str = SCORES
) -> dict[str, npt.NDArray[Any]]:
    """Replace the teachers' columns of a tap by the stacked one, and those of their scores by one of all.

    Args:
        columns: Holds ``tap@teacher [n, C, *space]`` for every tap and teacher, ``scores@teacher [n, K_t]``,
            and others.
        taps: Tap names.
        teachers: Teacher names, in stacking order; none leaves all as it is.
        scores: Which of the teachers' score columns counts.

    Returns:
        The columns of no teacher as they are, ``tap [n, S, *space]`` for every tap, and
        ``scores [n, sum of K_t]``, in fp16.

    Raises:
        InputError: A feature is not finite, which in fp16 means larger than 65,504.
    """
    parts = {tap: [feature_column(tap, teacher) for teacher in teachers] for tap in taps}
    if teachers:
        parts[SCORES] = [feature_column(scores, teacher) for teacher in teachers]
    stacked = {name: column for name, column in columns.items() if "@" not in name}
    for tap, names in parts.items():
        stacked[tap] = np.concatenate([columns[name] for name in names], axis=1).astype(np.float16)
        if not np.isfinite(stacked[tap]).all():
            raise InputError(f"tap {tap}: features are not finite (in fp16: NaN, or larger than 65504)")
    return stacked
