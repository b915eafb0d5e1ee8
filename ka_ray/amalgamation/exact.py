"""Auto-encoders that are computed instead of trained: linear with squared error, they have a closed form.

Shapes: S stacked channels, C code channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ka_ray.amalgamation.autoencoder import AutoEncoder
from ka_ray.amalgamation.moments import Moments

DEAD = 1e-12
"""A channel with less than this share of the largest variance left is told by those chosen before it."""


def principal_code(moments: Moments, code_channels: int) -> AutoEncoder:
    """Compute the auto-encoder with the least squared error of this width.

    Its decoder's columns are the orthonormal eigenvectors of the covariance with the largest eigenvalues, its
    encoder their transpose, so lengths in the code are lengths in the features (Baldi and Hornik, 1989).

    Raises:
        InputError: The features never vary.
    """
    moments.check_variance()
    _, ascending = torch.linalg.eigh(moments.covariance)
    directions = ascending[:, len(ascending) - code_channels :].flip(1)
    encode = directions.T, -(directions.T @ moments.mean)
    return AutoEncoder.of(encode, (directions, moments.mean))


def width_of_energy(spectrum: Tensor, energy: float) -> int:
    """Find the least width that keeps this share of the variance.

    Args:
        spectrum: From :meth:`Moments.spectrum`.
        energy: In (0, 1].

    Example:
        >>> width_of_energy(torch.tensor([1.0, 0.3, 0.01, 0.0]), 0.99)
        2
    """
    enough = spectrum <= 1 - energy + 1e-12
    return max(1, int(enough.to(torch.int8).argmax()))


def choose_channels(covariance: Tensor, count: int) -> tuple[int, ...]:
    """Choose the channels from which an affine map tells all others best, one after the other.

    Each next channel is the one whose removal from all others (by regression) takes away most of the variance
    that is left, summed over all channels. Column-pivoted QR, the usual choice, takes the channel with most
    variance of its own left, also where no other channel shares it. The covariance and not the second moment
    counts, because the layers that read the channels have a bias.

    Args:
        covariance: `[S, S]`, of the features as the next layer sees them: activated.
        count: C, at most S.

    Returns:
        The chosen channels, ascending.
    """
    left = covariance.to(torch.float64, copy=True)
    floor = DEAD * left.diagonal().max().clamp_min(1e-300)
    chosen: list[int] = []
    for _ in range(count):
        variance = left.diagonal()
        gain = torch.where(variance > floor, left.square().sum(dim=0) / variance.clamp_min(floor), -1.0)
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        chosen.append(best)
        if variance[best] > floor:
            column = left[:, best] / variance[best].sqrt()
            left -= torch.outer(column, column)
    return tuple(sorted(chosen))


def channels_code(moments: Moments, chosen: Sequence[int]) -> AutoEncoder:
    """Compute the auto-encoder whose code are some of the channels themselves.

    The encoder selects; the decoder rebuilds all channels by regression, as well as these tell them. An
    activation keeps its meaning on such a code, so no adapter is needed behind it.
    """
    places = list(chosen)
    covariance = moments.covariance
    encode = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)[places]
    decode = torch.linalg.lstsq(
        covariance[places][:, places].cpu(), covariance[places].cpu(), driver="gelsd"
    ).solution.T.to(covariance)
    bias = moments.mean - decode @ moments.mean[places]
    return AutoEncoder.of((encode, covariance.new_zeros(len(places))), (decode, bias))
