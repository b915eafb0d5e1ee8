"""Label-preserving views of images: random ones from given numbers, and all of a fixed set.

Shapes: B images, H and W in pixels.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from ka_ray.config import Augmentation, ScoresConfig

NUM_VIEW_DRAWS = 3
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
        images = shift(images, (draws[:, 1:] * (2 * config.shift + 1)).long() - config.shift)
    return images


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Shift every image by its own offset; what a shift uncovers repeats the border.

    Args:
        images: `[B, 3, H, W]`.
        offsets: Rows and columns (down, right) from where each pixel is read, `[B, 2]` integers.
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) + offsets[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + offsets[:, 1:]).clamp(0, width - 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def views(images: Tensor, config: ScoresConfig) -> Iterator[Tensor]:
    """Yield the images themselves, then every configured view of them.

    With ``flip`` and ``shift`` together also the mirrored images are shifted: 1, 2, 5 or 10 views.

    Args:
        images: `[B, 3, H, W]`.
        config: Names the views.
    """
    sides = [images, images.flip(-1)] if "flip" in config.views else [images]
    step = config.shift if "shift" in config.views else 0
    moves = [(0, 0), (step, 0), (-step, 0), (0, step), (0, -step)] if step else [(0, 0)]
    for side in sides:
        for move in moves:
            offsets = torch.tensor(move, device=images.device).expand(len(images), 2)
            yield shift(side, offsets) if any(move) else side


def score_views(
    score: Callable[[Tensor], Tensor], images: Tensor, config: ScoresConfig, known: Tensor | None = None
) -> Tensor:
    """Average scores over the views of :func:`views`: a better target than a single view's, without labels.

    Args:
        score: From images `[B, 3, H, W]` to scores `[B, K]`.
        images: `[B, 3, H, W]`.
        config: Names the views.
        known: The scores of the images themselves, if they are known already.
    """
    parts = [score(view) for view in islice(views(images, config), 0 if known is None else 1, None)]
    return torch.stack(parts if known is None else [known, *parts]).mean(dim=0)
