"""Bring features of one tap to the student's height and width.

Teachers of other architectures or input sizes have larger or smaller maps at the same role. Only the size
changes, never the channels, so the maps of all teachers can be stacked position by position.

Shapes: B images, C channels, *space height and width (none for a vector).
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ka_ray.errors import InputError


def resize_features(features: Tensor, space: Sequence[int]) -> Tensor:
    """Bring features to a height and width.

    A larger map is averaged over equal windows (adaptive average pooling): every value of it counts, and what
    is finer than the student's grid is taken out instead of aliased. A smaller map is interpolated
    bilinearly: nothing is invented between its values. A map becomes a vector by its average over all
    positions, and a vector a map of one position.

    Args:
        features: `[B, C, *space]`.
        space: The wanted height and width; empty for a vector.

    Returns:
        `[B, C, *space]`; the same tensor where nothing is to be done.

    Example:
        >>> import torch
        >>> resize_features(torch.zeros(2, 3, 25, 25), (8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    if tuple(features.shape[2:]) == tuple(space):
        return features
    if not space:
        return features.mean(dim=(2, 3))
    if features.dim() == 2:
        features = features[:, :, None, None]
    (height, width), (rows, columns) = features.shape[2:], space
    pooled = min(height, rows), min(width, columns)
    if (height, width) != pooled:
        features = functional.adaptive_avg_pool2d(features, pooled)
    if pooled != (rows, columns):
        features = functional.interpolate(features, tuple(space), mode="bilinear", align_corners=False)
    return features


def check_resizable(tap: str, teacher: str, shape: Sequence[int], space: Sequence[int]) -> None:
    """Refuse what no resizing can bring to the student's size.

    Args:
        tap: For the message.
        teacher: For the message.
        shape: The teacher's features of one image, ``(C, *space)``.
        space: The student's.

    Raises:
        InputError: The teacher gives a vector where the student has a map.
    """
    if len(shape) == 1 and any(size > 1 for size in space):
        raise InputError(
            f"taps.{tap}: teacher {teacher} gives a vector, the student a map of {tuple(space)} there; "
            "pair vectors with vectors (a map may stand for a vector: it is averaged)"
        )
