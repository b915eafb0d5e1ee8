"""A space that all teachers' features share (Luo, Wang, Fang, Hu, Tao, Song, IJCAI 2019).

"Knowledge Amalgamation from Heterogeneous Networks by Common Feature Learning". Shapes: N teachers, S stacked
channels, C code channels, n positions, G groups of m positions.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.autoencoder import AutoEncoder, LinkLearner, WhitenedAutoEncoder, affine
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments

DISCREPANCY_WEIGHT = 10.0
"""What the discrepancy of the teachers' codes counts beside the sum of the teachers' rebuilding losses."""

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernels, in mean squared distances of the points."""

GROUP_SIZE = 32
"""Positions compared with one another. Where every worker's share of a batch is a multiple of it, the loss
of the batch is the mean over the shares, and any number of workers learns the same."""

LEAST_SPREAD = 1e-6
"""Points with a smaller mean squared distance are taken as one; codes have about unit variance."""

RIDGE = 1e-8
"""Added to the code's covariance, in shares of its mean variance, when the decoder is solved for."""


class CommonFeatureLearner(LinkLearner):
    """Trains one map a teacher into the same C channels, where all teachers' features are alike.

    ``h_t = E_t F_t`` must rebuild teacher t's features, and the ``h_t`` of all teachers must have the same
    distribution: ``loss = sum_t 1/2 ||D_t h_t - F_t||^2 + weight * mean over pairs MMD^2(h_t, h_s)``, the
    first a value and in units of the teacher's variance. The code is the mean of the ``h_t``.

    Args:
        moments: Of the stacked features.
        channels: Each teacher's channels, in the order in which they are stacked.
        code_channels: C; may be more than a teacher has.

    Raises:
        InputError: A teacher's features never vary.
    """

    def __init__(self, moments: Moments, channels: Sequence[int], code_channels: int) -> None:
        super().__init__()
        self.moments, self.channels = moments, tuple(channels)
        self.teachers = nn.ModuleList()
        start = 0
        for teacher, count in enumerate(channels, start=1):
            part = moments.slice_channels(start, start + count)
            if not part.covariance.trace() > 0:
                raise InputError(
                    f"the features of teacher {teacher} of {len(channels)} never vary, so they have nothing "
                    "in common with others; drop the tap or use another codes.method"
                )
            self.teachers.append(WhitenedAutoEncoder(part, code_channels))
            start += count

    def forward(self, positions: Tensor) -> Tensor:
        """Give the loss of `[n, S]` features."""
        codes = self.encode(positions)
        parts = positions.split(self.channels, dim=1)
        triples = zip(self._learners(), parts, codes, strict=True)
        rebuilding = torch.stack([learner.loss(part, code) for learner, part, code in triples]).sum()
        return rebuilding + DISCREPANCY_WEIGHT * discrepancy(codes)

    def encode(self, positions: Tensor) -> Tensor:
        """Map `[n, S]` features to every teacher's points in the common space, `[N, n, C]`."""
        parts = positions.split(self.channels, dim=1)
        return torch.stack([learner.encode(p) for learner, p in zip(self._learners(), parts, strict=True)])

    @torch.no_grad()
    def to_autoencoder(self) -> AutoEncoder:
        """Give the encoder to the mean of the teachers' codes, and the best linear decoder from there.

        The decoder is the least-squares solution over all positions, ``Cov E' (E Cov E')^-1`` for the encoder
        as it is stored, in float32.
        """
        weights, biases = zip(*(learner.raw_encoder() for learner in self._learners()), strict=True)
        collapsed = AutoEncoder(sum(self.channels), weights[0].shape[0])
        collapsed.encoder.weight.copy_(torch.cat(weights, dim=1) / len(weights))
        collapsed.encoder.bias.copy_(torch.stack(biases).mean(dim=0))
        encode, encode_bias = affine(collapsed.encoder)
        covariance, mean = self.moments.covariance.to(encode), self.moments.mean.to(encode)
        code_covariance = encode @ covariance @ encode.T
        code_covariance += RIDGE * code_covariance.diagonal().mean() * torch.eye(len(encode)).to(encode)
        decode = torch.linalg.solve(code_covariance, encode @ covariance).T
        return AutoEncoder.of((encode, encode_bias), (decode, mean - decode @ (encode @ mean + encode_bias)))

    def _learners(self) -> list[WhitenedAutoEncoder]:
        return [cast(WhitenedAutoEncoder, teacher) for teacher in self.teachers]


def discrepancy(codes: Tensor) -> Tensor:
    """Estimate how far apart the distributions of several point sets lie: the mean squared MMD of all pairs.

    Maximum mean discrepancy with the mean of several Gaussian kernels, whose widths are multiples of the
    points' mean squared distance, so that the scale of the points does not matter. The estimate is the
    U-statistic (Gretton et al., JMLR 2012, eq. 3), unbiased for independent sets: around 0 when the
    distributions are the same, and below 0 for sets that agree point by point. Between two sets it compares
    all points, those of one position too. These come from one image, so that the estimate also pulls
    ``h_t`` and ``h_s`` together: without that the teachers' codes cancel out in their mean.

    Args:
        codes: `[N, n, C]`, compared in groups of 32 positions in a row; positions past the last full group
            are left out, and fewer than 32 are one group.

    Returns:
        A scalar, the mean over groups and pairs.

    Example:
        >>> points = torch.linspace(-1, 1, 32)[:, None]
        >>> round(discrepancy(torch.stack([points, points + 9])).item(), 1)
        1.5
    """
    teachers, count, _ = codes.shape
    size = min(GROUP_SIZE, count)
    groups = count // size
    points = codes[:, : groups * size].unflatten(1, (groups, size)).transpose(0, 1)
    kernel = _kernel(points.flatten(1, 2)).unflatten(2, (teachers, size)).unflatten(1, (teachers, size))
    sums = kernel.sum(dim=(2, 4))
    own = sums.diagonal(dim1=1, dim2=2)
    within = (own - size).mean() / max(size * (size - 1), 1)
    across = (sums.sum() - own.sum()) / (groups * teachers * (teachers - 1) * size**2)
    estimate: Tensor = 2 * (within - across)
    return estimate


def _kernel(points: Tensor) -> Tensor:
    """Compare all points `[G, p, C]` of each group with one another: `[G, p, p]`, 1 for the same point."""
    centred = points - points.mean(dim=1, keepdim=True)
    squares = centred.square().sum(dim=-1)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * centred @ centred.transpose(1, 2)
    distances = distances.clamp_min(0)
    count = points.shape[1]
    spread = distances.sum(dim=(1, 2)) / (count * (count - 1))
    distances = distances / spread.clamp_min(LEAST_SPREAD)[:, None, None]
    kernels = [torch.exp(-distances / width) for width in BANDWIDTHS]
    return torch.stack(kernels).mean(dim=0)
