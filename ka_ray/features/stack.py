"""Stack the teachers' features of one tap over channels.

Shapes: n images, S channels of all teachers together, *space height and width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ka_ray.errors import InputError


def feature_column(tap: str, teacher: str) -> str:
    """Name the column that carries one teacher's features of one tap between the teacher stages."""
    return f"{tap}@{teacher}"


def stack_columns(
    columns: dict[str, npt.NDArray[Any]], taps: Sequence[str], teachers: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Replace every teacher's column of a tap by the stacked one.

    Args:
        columns: Holds ``tap@teacher [n, C, *space]`` for every tap and teacher, and others.
        taps: Tap names.
        teachers: Teacher names, in stacking order.

    Returns:
        The other columns as they are, and ``tap [n, S, *space]`` for every tap.

    Raises:
        InputError: A feature is not finite, which in fp16 means larger than 65,504.
    """
    parts = {tap: [feature_column(tap, teacher) for teacher in teachers] for tap in taps}
    used = {name for names in parts.values() for name in names}
    stacked = {name: column for name, column in columns.items() if name not in used}
    for tap, names in parts.items():
        stacked[tap] = np.concatenate([columns[name] for name in names], axis=1)
        if not np.isfinite(stacked[tap]).all():
            raise InputError(f"tap {tap}: features are not finite (in fp16: NaN, or larger than 65504)")
    return stacked
