"""Choose the channels of a tap from which the next layer's output can be predicted best.

Shapes: S stacked channels of the tap, k values of one channel that one output value of the next layer sees
(the kernel positions of a conv), T output channels of the next layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEAD_VARIANCE_SHARE = 1e-12
"""A direction counts as fully explained if its remaining variance is below this share of the largest one."""


@dataclass(frozen=True)
class LayerInputStats:
    """Second-order statistics of what the next layer sees of a tap's channels.

    Attributes:
        covariance: `[S k, S k]`, covariance of the layer's inputs after activation and pooling. The k values
            of one channel are adjacent.
        targets: `[S k, T]`, covariance of the inputs with the output that the layer should produce. None: the
            inputs are their own targets, so the chosen channels should predict all channels.
        num_values: k.
    """

    covariance: Tensor
    targets: Tensor | None = None
    num_values: int = 1

    def select_channels(self, channels: Sequence[int]) -> "LayerInputStats":
        """Return the statistics of only these channels, in the given order."""
        first_rows = torch.as_tensor(channels, device=self.covariance.device)[:, None] * self.num_values
        rows = (first_rows + torch.arange(self.num_values, device=first_rows.device)).flatten()
        targets = None if self.targets is None else self.targets[rows]
        return LayerInputStats(self.covariance[rows[:, None], rows], targets, self.num_values)


def order_channels(stats: LayerInputStats, count: int) -> tuple[int, ...]:
    """Order channels so that an affine map of the first ones predicts the next layer's targets best.

    This is forward selection for linear regression: each step takes the channel whose k values explain most
    of the targets' remaining variance. The usual choice, column-pivoted QR, looks only at the variance of the
    channels themselves. The next layer has a bias, so the covariance counts and not the second moment.

    Args:
        stats: Statistics of S channels.
        count: Number of channels to return, at most S.

    Returns:
        Channel numbers, the most informative first.
    """
    # Both matrices hold what the channels chosen so far leave unexplained.
    inputs = stats.covariance.to(torch.float64, copy=True)
    targets = inputs if stats.targets is None else stats.targets.to(torch.float64, copy=True)
    values, channels = stats.num_values, len(inputs) // stats.num_values
    floor = DEAD_VARIANCE_SHARE * inputs.diagonal().max().clamp_min(1e-300)  # above 0 for constant inputs
    chosen: list[int] = []
    for _ in range(count):
        blocks = inputs.unflatten(0, (channels, values)).unflatten(2, (channels, values))
        variances, directions = torch.linalg.eigh(blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        alive = variances > floor
        scales = torch.where(alive, variances.clamp_min(floor).rsqrt(), 0.0)
        whiten = directions * scales[:, None]  # [S, k, k]: columns without variance are zero
        # Regression on whitened inputs explains the sum of their squared covariances with the targets.
        gain = (whiten.transpose(1, 2) @ targets.unflatten(0, (channels, values))).square().sum(dim=(1, 2))
        # Channels without variance come last, but before those that are already chosen.
        gain = torch.where(alive.any(dim=1), gain, -1.0)
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        chosen.append(best)
        # Subtract what the chosen channel explains (the Schur complement of its block).
        rows = slice(best * values, (best + 1) * values)
        explained = whiten[best].T @ inputs[rows]
        if targets is not inputs:
            targets.addmm_(explained.T, whiten[best].T @ targets[rows], alpha=-1)
        inputs.addmm_(explained.T, explained, alpha=-1)
    return tuple(chosen)


def choose_channels(stats: LayerInputStats, count: int) -> tuple[int, ...]:
    """Choose the channels that come first in :func:`order_channels`.

    Args:
        stats: Statistics of S channels.
        count: Number of channels to choose, at most S.

    Returns:
        Channel numbers in ascending order.
    """
    return tuple(sorted(order_channels(stats, count)))
