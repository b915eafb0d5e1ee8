"""Samples of a layer's inputs and targets, and their moments over all ranks.

Shapes: n samples, G groups of a layer, D inputs and T outputs of one group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.numerics.moments import Moments

Merge = Callable[[Tensor], Tensor]
"""Adds a float64 tensor up over all ranks."""

CHUNK_ROWS = 4096
"""Rows that are converted to float64 at a time."""


@dataclass(frozen=True)
class LayerSamples:
    """Samples of a least-squares problem.

    Attributes:
        joint: `[n, G, D + T]`, inputs beside targets.
        held_out: `[n]`, whether the sample's image is held out.
        num_outputs: T.
    """

    joint: Tensor
    held_out: Tensor
    num_outputs: int

    @property
    def inputs(self) -> Tensor:
        """`[n, G, D]`."""
        return self.joint[..., : -self.num_outputs]

    @property
    def targets(self) -> Tensor:
        """`[n, G, T]`."""
        return self.joint[..., -self.num_outputs :]

    def moments(self, held_out: bool, merge: Merge) -> list[Moments]:
        """Return the moments of the images that are held out, or of the others, for each group.

        The covariances of the targets among each other, which no regression needs, are set to 0.
        """
        return merged_moments(self.joint[self.held_out == held_out], merge, self.num_outputs)


def merged_moments(rows: Tensor, merge: Merge, num_independent: int = 0) -> list[Moments]:
    """Return the moments of samples over all ranks.

    Args:
        rows: `[n, G, N]`, this rank's samples.
        merge: Adds up over all ranks; it is called twice.
        num_independent: Number of values at the end whose covariances among each other are set to 0. This
            saves most of the time where they are many.
    """
    count, shape = rows.new_tensor([len(rows)], dtype=torch.float64), rows.shape[1:]
    sums = merge(torch.cat([count, rows.sum(dim=0, dtype=torch.float64).flatten()]))
    mean = (sums[1:] / sums[0].clamp_min(1)).view(shape)
    scatter = mean.new_zeros(shape[0], shape[1], shape[1])
    size = shape[1] - num_independent
    for chunk in rows.split(max(1, CHUNK_ROWS // shape[0]) if shape[0] > 1 else CHUNK_ROWS):
        centred = (chunk.to(torch.float64) - mean).transpose(0, 1)
        scatter[:, :size].baddbmm_(centred[..., :size].transpose(1, 2), centred)
        scatter[:, size:, size:].diagonal(dim1=1, dim2=2).add_(centred[..., size:].square().sum(dim=1))
    scatter[:, size:, :size] = scatter[:, :size, size:].transpose(1, 2)
    scatter = merge(scatter)
    return [Moments(int(sums[0]), mean[g], scatter[g]) for g in range(shape[0])]


@dataclass(frozen=True)
class CrossMoments:
    """Covariances of inputs with themselves and with outputs, over all ranks.

    Attributes:
        inputs: `[D, D]`.
        cross: `[D, T]`.
        outputs: `[T]`, the variances of the outputs.
    """

    inputs: Tensor
    cross: Tensor
    outputs: Tensor


def merged_cross_moments(inputs: Tensor, outputs: Tensor, merge: Merge) -> CrossMoments:
    """Return the covariances of samples over all ranks, without those of the outputs among each other.

    Args:
        inputs: `[n, D]`, this rank's samples.
        outputs: `[n, T]`.
        merge: Adds up over all ranks; it is called twice.
    """
    size = inputs.shape[1]
    parts = (
        inputs.new_tensor([len(inputs)]).double(),
        *(x.sum(0, dtype=torch.float64) for x in (inputs, outputs)),
    )
    sums = merge(torch.cat(parts))
    count = sums[0].clamp_min(1)
    mean = (sums[1:] / count).to(inputs.dtype)
    # Centred samples need no float64 here: the covariances are only used to compare channels.
    centred, targets = inputs - mean[:size], outputs - mean[size:]
    products = torch.cat([centred.T @ centred, centred.T @ targets], dim=1).double()
    variances = targets.square().sum(dim=0).double()
    merged = merge(torch.cat([products.flatten(), variances])) / count
    products = merged[: products.numel()].view_as(products)
    return CrossMoments(products[:, :size], products[:, size:], merged[-len(variances) :])
