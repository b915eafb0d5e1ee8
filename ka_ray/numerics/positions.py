"""Sample positions of feature maps: unbiased averages at far less cost than all positions.

Shapes: B images, S channels, *space height and width, P sampled positions per image.
"""

import torch
from torch import Tensor


def sample_positions(draws: Tensor, available: int, wanted: int) -> Tensor:
    """Sample positions of every image at equal distances from a random start (systematic sampling).

    Every position has the same probability, so averages over the sample are unbiased. The sample depends only
    on one random number per image, so it does not depend on the number of workers.

    Args:
        draws: One random number per image, `[B]`, uniform in [0, 1).
        available: Number of positions of a map, height times width.
        wanted: Number of positions to sample, at most ``available``; a larger number samples all.

    Returns:
        `[B, P]` positions in ascending order, P = min(wanted, available).
    """
    wanted = min(wanted, available)
    steps = torch.arange(wanted, dtype=torch.float64, device=draws.device)
    positions = (draws.to(torch.float64)[:, None] + steps) * (available / wanted)
    # A draw just below 1 can be rounded up to the position past the end.
    return positions.to(torch.int64).clamp_max(available - 1)


def sample_features(features: Tensor, draws: Tensor, wanted: int) -> Tensor:
    """Return the features at sampled positions.

    Args:
        features: `[B, S, *space]` maps, or `[B, S]` vectors, which have one position.
        draws: One random number per image, `[B]`, uniform in [0, 1); see :func:`sample_positions`.
        wanted: Number of positions to sample from each map; a number larger than the map samples all.

    Returns:
        `[B * P, S]`, the positions of one image after another.

    Example:
        >>> sample_features(torch.rand(4, 3, 8, 8), torch.rand(4), 16).shape
        torch.Size([64, 3])
    """
    flat = features.flatten(2) if features.dim() > 2 else features[:, :, None]
    positions = sample_positions(draws, flat.shape[2], wanted)
    picked = flat.gather(2, positions[:, None].expand(-1, flat.shape[1], -1))
    return picked.transpose(1, 2).flatten(0, 1)
