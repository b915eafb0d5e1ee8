"""Stack the teachers' features of one tap over channels.

Shapes: n images, S channels of all teachers together, K_t classes of teacher t, ``*space`` height and width.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ka_ray.config import DESCRIPTIVE
from ka_ray.errors import InputError

SCORES = "scores"
"""Name of the score column: of one teacher's scores, of all teachers' scores side by side, and of the
student's last stage, which computes its scores."""

TARGETS = "targets"
"""Name of the column with a teacher's scores averaged over several views of the image."""


EMBEDDING = "embedding"
"""Name of the column with the inputs of a teacher's last layer, and of those of all teachers side by side;
behind them stands the embedding of the descriptive network, if there is one."""

OWNERS = "owners"
"""Name of the column with log p(owner | image), one value per teacher, from a gate."""

P_NOBODY = "p_nobody"
"""Name of the column with the probability that an image belongs to no teacher, beside :data:`OWNERS`."""


def feature_column(tap: str, teacher: str) -> str:
    """Return the name of the column that holds one teacher's features of one tap.

    The column exists only while batches pass from teacher to teacher; :func:`stack_columns` then replaces it.

    Args:
        tap: Name of the tap, :data:`SCORES` or :data:`TARGETS`.
        teacher: Name of the teacher.
    """
    return f"{tap}@{teacher}"


def stack_columns(
    columns: dict[str, npt.NDArray[Any]],
    taps: Sequence[str],
    teachers: Sequence[str],
    scores: str = SCORES,
    kept: Sequence[str] = (),
    float32: Collection[str] = (),
) -> dict[str, npt.NDArray[Any]]:
    """Replace the teachers' separate columns by stacked ones, per tap and for the scores.

    Args:
        columns: Per tap and teacher a column ``tap@teacher [n, C, *space]``, per teacher ``scores@teacher
            [n, K_t]``, and any other columns.
        taps: Names of the taps to stack.
        teachers: Their names in stacking order. If empty, nothing is stacked.
        scores: Which of the teachers' score columns to stack: :data:`SCORES` or :data:`TARGETS`.
        kept: Columns of teachers that are kept, such as their views of the images.
        float32: Stacked columns that are not rounded to float16, see :mod:`ka_ray.features.precision`.

    Returns:
        The columns that belong to no teacher, unchanged; per tap a column ``tap [n, S, *space]``;
        ``scores [n, sum of K_t]``; and ``embedding [n, sum of D_t]`` if there are such columns, that of the
        descriptive network last. Stacked columns have dtype float16, or float32.

    Raises:
        InputError: A feature is not finite. In float16 that includes values above 65,504 (``float32``: none).
    """
    parts = {tap: [feature_column(tap, teacher) for teacher in teachers] for tap in taps}
    if teachers:
        parts[SCORES] = [feature_column(scores, teacher) for teacher in teachers]
        if any(name.startswith(f"{EMBEDDING}@") for name in columns):
            parts[EMBEDDING] = _list_embeddings(columns, teachers)
    stacked = {name: column for name, column in columns.items() if "@" not in name or name in kept}
    for tap, names in parts.items():
        # Half precision halves the disk space, and most features need no more than its three digits.
        dtype = np.float32 if tap in float32 else np.float16
        stacked[tap] = np.concatenate([columns[name] for name in names], axis=1).astype(dtype)
        _check_finite(stacked[tap], tap, teachers)
    return stacked


def _check_finite(values: npt.NDArray[Any], tap: str, teachers: Sequence[str]) -> None:
    if not np.isfinite(values).all():
        raise InputError(
            f"tap {tap}: features of {', '.join(teachers)} are not finite. They are kept as {values.dtype}: "
            f"no NaN, and nothing above {np.finfo(values.dtype).max:.6g}; check the teachers' preprocessing, "
            "or tap behind a norm"
        )


def _list_embeddings(columns: Collection[str], teachers: Sequence[str]) -> list[str]:
    """Return the columns of embeddings in stacking order: the teachers', then the descriptive network's."""
    names = [feature_column(EMBEDDING, source) for source in (*teachers, DESCRIPTIVE)]
    return [name for name in names if name in columns]
