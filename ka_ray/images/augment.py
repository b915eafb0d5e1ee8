"""Label-preserving views of images: random ones for training, and a fixed set for averaging scores.

Shapes: B images, H and W in pixels, K classes.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from ka_ray.config import Augmentation, ScoresConfig

NUM_VIEW_DRAWS = 3
"""Number of uniform random numbers that one image's random view needs."""


def augment(images: Tensor, config: Augmentation, draws: Tensor, scale: float = 1.0) -> Tensor:
    """Mirror and shift images at random.

    Args:
        images: Pixels, ``[B, 3, H, W]``.
        config: Whether to mirror, and the largest shift in pixels.
        draws: Uniform random numbers in [0, 1), ``[B, 3]``: for mirroring, the vertical and the horizontal
            shift. The caller derives them from the images' ids, so that a resumed run repeats them.
        scale: Factor of the shifts, for images of another size than those that `config` is meant for.

    Returns:
        Views, ``[B, 3, H, W]``. Pixels from outside of the image repeat its border.
    """
    if config.flip:
        images = torch.where((draws[:, 0] < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)
    if config.shift:
        # [0, 1) becomes one of the integers -shift ... shift, each equally likely.
        offsets = (draws[:, 1:] * (2 * config.shift + 1)).long() - config.shift
        images = shift(images, (offsets * scale).round().long())
    return images


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Shift every image by its own offset; pixels from outside of the image repeat its border.

    Args:
        images: Pixels, ``[B, 3, H, W]``.
        offsets: How many rows below and columns to the right each pixel is read from, ``[B, 2]`` integers.

    Returns:
        Shifted images, ``[B, 3, H, W]``.
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) + offsets[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + offsets[:, 1:]).clamp(0, width - 1)
    # One indexing operation for the whole batch: torch.roll would shift all images alike.
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[batch, channel, rows[:, None, :, None], columns[:, None, None, :]]


def generate_views(images: Tensor, config: ScoresConfig, scale: float = 1.0) -> Iterator[Tensor]:
    """Yield the images themselves, then every configured view of them.

    There are 1, 2 (``flip``), 5 (``shift``) or 10 views (both: the mirrored images are shifted, too).

    Args:
        images: Pixels, ``[B, 3, H, W]``.
        config: Which views to make, and by how many pixels to shift.
        scale: Factor of the shift, for images of another size than those that `config` is meant for.

    Yields:
        One view of all images, ``[B, 3, H, W]``.
    """
    sides = [images, images.flip(-1)] if "flip" in config.views else [images]
    step = round(config.shift * scale) if "shift" in config.views else 0
    moves = [(0, 0), (step, 0), (-step, 0), (0, step), (0, -step)] if step else [(0, 0)]
    for side in sides:
        for move in moves:
            offsets = torch.tensor(move, device=images.device).expand(len(images), 2)
            yield shift(side, offsets) if any(move) else side


def score_views(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    config: ScoresConfig,
    known: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Average scores over the views of :func:`generate_views`.

    The average is a better target for the student than the scores of one view, and needs no labels.

    Args:
        score: Computes scores ``[B, K]`` from images ``[B, 3, H, W]``.
        images: Pixels, ``[B, 3, H, W]``.
        config: Which views to make, and by how many pixels to shift.
        known: The scores of the images themselves, ``[B, K]``, if they were computed before; None to compute
            them here.
        scale: Factor of the shift; see :func:`generate_views`.

    Returns:
        Mean scores, ``[B, K]``.
    """
    # The first view is the images themselves; it is skipped where its scores are known.
    views = islice(generate_views(images, config, scale), 0 if known is None else 1, None)
    parts = [score(view) for view in views]
    return torch.stack(parts if known is None else [known, *parts]).mean(dim=0)
