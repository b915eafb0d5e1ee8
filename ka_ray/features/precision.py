"""Which features would lose what they say if they were stored in half precision.

float16 has 11 binary digits. Of a channel around 1,000 they leave multiples of a half: a deviation of .1 is
lost. Almost all features of networks are around 0, where nothing of the kind happens, and halves of the size
on disk are worth keeping.

Shapes: n images, C channels, ``*space`` height and width.
"""

import torch
from torch import Tensor

MAX_LOST_VARIANCE = 1e-3
"""Largest share of a channel's variance that rounding to float16 may add or take."""

CONSTANT = 1e-6
"""Deviation of a channel, as a share of its largest value, up to which it is constant, also in float32."""


def measure_lost_variance(features: Tensor) -> Tensor:
    """Measure how much of each channel's variance the rounding to float16 loses.

    Args:
        features: Features of some images, ``[n, C, *space]`` or ``[n, C]``.

    Returns:
        Mean square of the rounding error over the variance of each channel, ``[C]`` in float64; 0 for
        channels that are constant, infinite for those with values beyond float16.
    """
    rows = features.detach().cpu().double().transpose(0, 1).flatten(1)  # [C, n * space]
    variance = rows.var(dim=1, correction=0)
    error = (rows - rows.half().double()).square().mean(dim=1)
    # A channel that hardly varies beside the others, such as one whose filters have decayed, says nothing.
    varies = (variance.sqrt() > CONSTANT * rows.abs().amax(dim=1)) & (variance > CONSTANT**2 * variance.max())
    return torch.where(varies, error / variance, torch.zeros_like(variance))


def needs_float32(features: Tensor) -> bool:
    """Return whether a channel loses more than :data:`MAX_LOST_VARIANCE` in float16.

    Args:
        features: As in :func:`measure_lost_variance`. Features that are not finite are no reason.
    """
    if not bool(features.isfinite().all()):
        return False  # they are refused when they are stored
    return bool((measure_lost_variance(features) > MAX_LOST_VARIANCE).any())
