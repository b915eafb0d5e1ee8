"""Learn a common space for all teachers' features (Luo, Wang, Fang, Hu, Tao, Song, IJCAI 2019).

The paper is "Knowledge Amalgamation from Heterogeneous Networks by Common Feature Learning". Shapes: N
teachers, S stacked channels, C code channels, n positions, G groups of p points each. A point is one
teacher's code at one position.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.autoencoder import AutoEncoder, LinkLearner, WhitenedAutoEncoder, get_affine_map
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments

MMD_WEIGHT = 10.0
"""Weight of the discrepancy between the teachers' codes, next to the sum of their reconstruction losses."""

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the Gaussian kernels, in units of the mean squared distance between the points.

Several, because one bandwidth sees only differences of its own size; powers of two around 1 are usual.
"""

GROUP_SIZE = 32
"""Number of positions that are compared with one another. If every worker's share of a batch is a multiple of
it, the loss of the batch is the mean over the workers, so their number does not change what is learned."""

LEAST_SPREAD = 1e-6
"""Lower limit of the mean squared distance that the bandwidths are multiples of, so that points which all
coincide cause no division by zero. Codes have about unit variance."""

DECODER_RIDGE = 1e-8
"""Added to the code's covariance, in units of its mean variance, when the decoder is solved for."""


class CommonFeatureLearner(LinkLearner):
    """Trains one encoder per teacher, so that the codes of all teachers have the same distribution.

    The code ``h_t = E_t F_t``, C channels, must also suffice to rebuild the features F_t of teacher t:
    ``loss = sum_t 1/2 ||D_t h_t - F_t||^2 + weight * mean over pairs (t, s) of MMD^2(h_t, h_s)``.
    The first term is averaged over values and divided by the mean variance of the teacher's features. The
    final code is the mean of all ``h_t``.

    Args:
        moments: Moments of the stacked features, S channels.
        channels: Number of channels of each teacher, in the order in which they are stacked.
        code_channels: C; may be larger than the number of channels of a teacher.

    Raises:
        InputError: A teacher's features never vary.
    """

    def __init__(self, moments: Moments, channels: Sequence[int], code_channels: int) -> None:
        super().__init__()
        self.moments, self.channels = moments, tuple(channels)
        self.teachers = nn.ModuleList()
        start = 0
        for teacher, count in enumerate(channels, start=1):
            own_moments = moments.slice_channels(start, start + count)
            # Checked here because the general message of `check_variance` would not name the teacher.
            if not own_moments.covariance.trace() > 0:
                raise InputError(
                    f"the features of teacher {teacher} of {len(channels)} never vary, so they have nothing "
                    "in common with those of the others; remove the tap or use another codes.method"
                )
            self.teachers.append(WhitenedAutoEncoder(own_moments, code_channels))
            start += count

    def forward(self, positions: Tensor) -> Tensor:
        """Return the loss, a scalar, for `[n, S]` features."""
        codes = self.encode(positions)
        parts = positions.split(self.channels, dim=1)
        triples = zip(self._learners(), parts, codes, strict=True)
        reconstruction = torch.stack([learner.loss(part, code) for learner, part, code in triples]).sum()
        return reconstruction + MMD_WEIGHT * mean_squared_mmd(codes)

    def encode(self, positions: Tensor) -> Tensor:
        """Map `[n, S]` stacked features to the code of every teacher, `[N, n, C]`."""
        parts = positions.split(self.channels, dim=1)
        return torch.stack([learner.encode(p) for learner, p in zip(self._learners(), parts, strict=True)])

    @torch.no_grad()
    def to_autoencoder(self) -> AutoEncoder:
        """Return the encoder to the mean of the teachers' codes, and the best linear decoder for it.

        The trained decoders start from a single teacher's code and are not used. The decoder is the
        least-squares solution over all positions, ``Cov E' (E Cov E')^-1``, for the encoder E after rounding
        to float32, as it is stored.
        """
        weights, biases = zip(*(learner.raw_encoder() for learner in self._learners()), strict=True)
        rounded = AutoEncoder(sum(self.channels), weights[0].shape[0])
        # The mean of the teachers' codes is one linear map of the stacked features: weights side by side / N.
        rounded.encoder.weight.copy_(torch.cat(weights, dim=1) / len(weights))
        rounded.encoder.bias.copy_(torch.stack(biases).mean(dim=0))
        encode, encode_bias = get_affine_map(rounded.encoder)
        covariance, mean = self.moments.covariance.to(encode), self.moments.mean.to(encode)
        code_covariance = encode @ covariance @ encode.T
        # The ridge keeps the system solvable if the code is wider than the rank of the features.
        ridge = DECODER_RIDGE * code_covariance.diagonal().mean()
        code_covariance += ridge * torch.eye(len(encode)).to(encode)
        decode = torch.linalg.solve(code_covariance, encode @ covariance).T
        decode_bias = mean - decode @ (encode @ mean + encode_bias)
        return AutoEncoder.from_weights((encode, encode_bias), (decode, decode_bias))

    def _learners(self) -> list[WhitenedAutoEncoder]:
        return [cast(WhitenedAutoEncoder, teacher) for teacher in self.teachers]


def mean_squared_mmd(codes: Tensor) -> Tensor:
    """Estimate the squared maximum mean discrepancy between point sets, averaged over all pairs of sets.

    The kernel is the mean of several Gaussian kernels whose bandwidths are multiples of the points' mean
    squared distance, so the scale of the points does not matter. The estimate is the U-statistic of Gretton
    et al. (JMLR 2012, eq. 3). It is unbiased for independent sets: about 0 for equal distributions, so it can
    be negative, and it is most negative for sets that agree point by point.

    Between two sets it compares all points, also the two codes of the same position. They belong to the same
    image, so the estimate pulls them together as well. This is intended: otherwise the codes of different
    teachers would cancel out in their mean.

    Args:
        codes: `[N, n, C]`. Only positions of the same group of 32 consecutive ones are compared. Positions
            after the last full group are left out; fewer than 32 positions are one group.

    Returns:
        A scalar, the mean over groups and pairs.

    Example:
        >>> points = torch.linspace(-1, 1, 32)[:, None]
        >>> round(mean_squared_mmd(torch.stack([points, points + 9])).item(), 1)
        1.5
    """
    teachers, count, _ = codes.shape
    size = min(GROUP_SIZE, count)
    groups = count // size
    points = codes[:, : groups * size].unflatten(1, (groups, size)).transpose(0, 1)
    kernel = _kernel(points.flatten(1, 2)).unflatten(2, (teachers, size)).unflatten(1, (teachers, size))
    sums = kernel.sum(dim=(2, 4))  # [G, N, N], per pair of teachers
    own = sums.diagonal(dim1=1, dim2=2)
    # Without the diagonal: a point's kernel with itself is 1 and would bias the estimate.
    within = (own - size).mean() / max(size * (size - 1), 1)
    across = (sums.sum() - own.sum()) / (groups * teachers * (teachers - 1) * size**2)
    estimate: Tensor = 2 * (within - across)
    return estimate


def _kernel(points: Tensor) -> Tensor:
    """Compute the kernel of all pairs within each group of points: `[G, p, C]` to `[G, p, p]`."""
    # ||a - b||^2 = ||a||^2 + ||b||^2 - 2 ab needs no [G, p, p, C] tensor; centring keeps its rounding error
    # small.
    centred = points - points.mean(dim=1, keepdim=True)
    squares = centred.square().sum(dim=-1)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * centred @ centred.transpose(1, 2)
    distances = distances.clamp_min(0)
    count = points.shape[1]
    spread = distances.sum(dim=(1, 2)) / (count * (count - 1))
    distances = distances / spread.clamp_min(LEAST_SPREAD)[:, None, None]
    kernels = [torch.exp(-distances / width) for width in BANDWIDTHS]
    return torch.stack(kernels).mean(dim=0)
