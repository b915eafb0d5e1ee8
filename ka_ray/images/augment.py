"""Label-preserving views of images, from given random numbers: the same whoever computes them.

Shapes: B images, H and W in pixels.
"""

import torch
from torch import Tensor

from ka_ray.config import Augmentation

NUM_DRAWS = 3
"""Uniform numbers that one image's view takes."""


def augment(images: Tensor, config: Augmentation, draws: Tensor) -> Tensor:
    """Mirror and shift images.

    Args:
        images: `[B, 3, H, W]`.
        config: Which changes, and how large.
        draws: Uniform numbers in [0, 1), `[B, 3]`: mirror, vertical and horizontal shift.

    Returns:
        Views `[B, 3, H, W]`; what a shift uncovers repeats the border.
    """
    if config.flip:
        images = torch.where((draws[:, 0] < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)
    if config.shift:
        height, width = images.shape[-2:]
        offsets = (draws[:, 1:] * (2 * config.shift + 1)).long() - config.shift
        rows = (torch.arange(height, device=images.device) + offsets[:, :1]).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + offsets[:, 1:]).clamp(0, width - 1)
        batch = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        images = images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return images
