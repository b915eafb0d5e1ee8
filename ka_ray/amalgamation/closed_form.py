"""Auto-encoders that are computed instead of trained: linear with squared error, they have a closed form.

Shapes: S stacked channels, C code channels, k values of a channel that one output of the next layer sees, T
targets of that layer.
"""

from collections.abc import Sequence

import torch

from ka_ray.amalgamation.autoencoder import AutoEncoder
from ka_ray.numerics.moments import Moments


def fit_pca_autoencoder(moments: Moments, code_channels: int) -> AutoEncoder:
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


def fit_channel_autoencoder(moments: Moments, chosen: Sequence[int]) -> AutoEncoder:
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
