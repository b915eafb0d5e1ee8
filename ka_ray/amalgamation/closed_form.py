"""Fit auto-encoders in closed form instead of training them: they are linear, with squared error.

Shapes: S stacked channels, C code channels.
"""

from collections.abc import Sequence

import torch

from ka_ray.amalgamation.autoencoder import AutoEncoder
from ka_ray.numerics.moments import Moments


def fit_pca_autoencoder(moments: Moments, code_channels: int) -> AutoEncoder:
    """Fit the auto-encoder with the smallest squared error for a given width: principal component analysis.

    The decoder's columns are the eigenvectors of the covariance with the largest eigenvalues, and the encoder
    is their transpose (Baldi and Hornik, 1989). They are orthonormal, so the code has the units of the
    features.

    Args:
        moments: Moments of the stacked features, S channels.
        code_channels: Number of code channels, C, at most S.

    Raises:
        InputError: The features never vary.
    """
    moments.check_variance()
    _, ascending = torch.linalg.eigh(moments.covariance)
    directions = ascending[:, len(ascending) - code_channels :].flip(1)
    encode = directions.T, -(directions.T @ moments.mean)
    return AutoEncoder.from_weights(encode, (directions, moments.mean))


def fit_channel_autoencoder(moments: Moments, chosen: Sequence[int]) -> AutoEncoder:
    """Fit the auto-encoder whose code consists of some of the stacked channels themselves.

    The encoder selects the channels, the decoder predicts all channels from them by linear regression. An
    activation has the same meaning on such a code as on the features, so the student needs no adapter there.

    Args:
        moments: Moments of the stacked features, S channels.
        chosen: Indices of the C stacked channels to keep.
    """
    channels = list(chosen)
    covariance = moments.covariance
    encode = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)[channels]
    # Chosen channels can depend on each other; gelsd solves rank-deficient systems too, but only on the CPU.
    decode = torch.linalg.lstsq(
        covariance[channels][:, channels].cpu(), covariance[channels].cpu(), driver="gelsd"
    ).solution.T.to(covariance)
    bias = moments.mean - decode @ moments.mean[channels]
    return AutoEncoder.from_weights((encode, covariance.new_zeros(len(channels))), (decode, bias))
