"""Samples of a map's positions: sums over them are unbiased, and far cheaper than over whole maps.

Shapes: B images, S channels, *space height and width, P sampled positions of an image.
"""

import torch
from torch import Tensor


def sample_positions(draws: Tensor, available: int, wanted: int) -> Tensor:
    """Sample positions of every image at equal distances from a random start.

    Each position has the same chance, so sums over the sample are unbiased; and as one number an image
    decides, any number of workers samples the same.

    Args:
        draws: `[B]`, uniform in [0, 1).
        available: Positions of a map.
        wanted: At most so many are sampled.

    Returns:
        `[B, min(wanted, available)]`, ascending.
    """
    wanted = min(wanted, available)
    steps = torch.arange(wanted, dtype=torch.float64, device=draws.device)
    places = (draws.to(torch.float64)[:, None] + steps) * (available / wanted)
    return places.to(torch.int64).clamp_max(available - 1)


def sample_features(features: Tensor, draws: Tensor, wanted: int) -> Tensor:
    """Give features at sampled positions.

    Args:
        features: `[B, S, *space]`, or `[B, S]`, which has one position.
        draws: `[B]`, see :func:`sample_positions`.
        wanted: At most so many of each map.

    Returns:
        `[B * P, S]`.

    Example:
        >>> sample_features(torch.rand(4, 3, 8, 8), torch.rand(4), 16).shape
        torch.Size([64, 3])
    """
    flat = features.flatten(2) if features.dim() > 2 else features[:, :, None]
    positions = sample_positions(draws, flat.shape[2], wanted)
    picked = flat.gather(2, positions[:, None].expand(-1, flat.shape[1], -1))
    return picked.transpose(1, 2).flatten(0, 1)
