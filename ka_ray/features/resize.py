"""Resize the features of one tap to the student's height and width.

At the same tap, teachers with another architecture or input size have larger or smaller feature maps. Only
height and width change here, never the channels. Afterwards the maps of all teachers can be stacked position
by position.

Shapes: B images, C channels, ``*space`` height and width in positions (empty for a vector).
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ka_ray.errors import InputError


def resize_features(features: Tensor, space: Sequence[int]) -> Tensor:
    """Resize features to a height and width.

    A larger map is averaged over equal windows (adaptive average pooling). So each of its values counts, and
    detail finer than the student's grid is averaged out instead of aliased. A smaller map is interpolated
    bilinearly. To turn a map into a vector, it is averaged over all positions. A vector becomes a map by
    repeating its one position.

    Args:
        features: Feature maps or vectors, ``[B, C, *space]``.
        space: Wanted height and width in positions; empty for a vector.

    Returns:
        Features of the wanted size, ``[B, C, *space]``. If they already have it, the same tensor.

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
    # Height and width are treated separately: one may shrink (pooling) while the other grows (interpolation).
    pooled = min(height, rows), min(width, columns)
    if (height, width) != pooled:
        features = functional.adaptive_avg_pool2d(features, pooled)
    if pooled != (rows, columns):
        features = functional.interpolate(features, tuple(space), mode="bilinear", align_corners=False)
    return features


def check_resizable(tap: str, teacher: str, shape: Sequence[int], space: Sequence[int]) -> None:
    """Check that a teacher's features can be resized to the student's height and width.

    Args:
        tap: Name of the tap, for the error message.
        teacher: Name of the teacher, for the error message.
        shape: Shape of the teacher's features for one image, ``(C, *space)``.
        space: The student's height and width at the tap in positions; empty for a vector.

    Raises:
        InputError: The teacher has a vector where the student has a map of several positions.
    """
    # A 1x1 map has no spatial structure that could be missing, so a vector may be used for it.
    if len(shape) == 1 and any(size > 1 for size in space):
        raise InputError(
            f"taps.{tap}: teacher {teacher} has a vector there, but the student has a map of {tuple(space)} "
            "positions. Choose a module of the teacher that outputs a map, or a module of the student that "
            "outputs a vector (a teacher's map for a student's vector works: the map is averaged)"
        )
