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
    return order_shared_channels([stats], count)


def order_shared_channels(
    readers: Sequence[LayerInputStats], count: int, steps: int | None = None
) -> tuple[int, ...]:
    """Order channels that several layers read, as :func:`order_channels` does for one layer.

    Args:
        readers: Statistics of the same S channels, one per layer; each with its own number of values.
        count: Number of channels to return, at most S.
        steps: Number of steps in which the channels are chosen, as many in each; None: one channel per step.
            Of channels that tell the same, one step can choose several.

    Returns:
        Channel numbers, the most informative first.
    """
    left = [_Unexplained(stats) for stats in readers]
    per_step = 1 if steps is None else -(-count // steps)
    chosen: list[int] = []
    while len(chosen) < count:
        gain = torch.stack([reader.gains() for reader in left]).sum(dim=0)
        gain[chosen] = -torch.inf
        # Of equal gains, the first channel comes first; topk would choose any of them.
        best = gain.argsort(descending=True, stable=True)[: min(per_step, count - len(chosen))].tolist()
        chosen += best
        for reader in left:
            reader.explain(best)
    return tuple(chosen)


class _Unexplained:
    """What the channels chosen so far leave unexplained of a layer's inputs and targets.

    Args:
        stats: Statistics of all channels.
    """

    def __init__(self, stats: LayerInputStats) -> None:
        self.inputs = stats.covariance.to(torch.float64, copy=True)
        own = stats.targets is None
        self.targets = self.inputs if own else stats.targets.to(torch.float64, copy=True)  # type: ignore[union-attr]
        self.values, self.channels = stats.num_values, len(self.inputs) // stats.num_values
        # Above 0 also for constant inputs.
        self.floor = DEAD_VARIANCE_SHARE * self.inputs.diagonal().max().clamp_min(1e-300)

    def gains(self) -> Tensor:
        """Return how much of the targets' variance each channel would explain, `[S]`; -1 for dead ones."""
        shape = (self.channels, self.values)
        blocks = self.inputs.unflatten(0, shape).unflatten(2, shape).diagonal(dim1=0, dim2=2)
        whiten, alive = self._whiten(blocks.permute(2, 0, 1))
        # Regression on whitened inputs explains the sum of their squared covariances with the targets.
        gain = (whiten.transpose(1, 2) @ self.targets.unflatten(0, shape)).square().sum(dim=(1, 2))
        # Channels without variance come last, but before those that are already chosen.
        return torch.where(alive.any(dim=1), gain, -1.0)

    def explain(self, chosen: Sequence[int]) -> None:
        """Subtract what channels explain: the Schur complement of their block."""
        first = torch.as_tensor(chosen, device=self.inputs.device)[:, None] * self.values
        rows = (first + torch.arange(self.values, device=first.device)).flatten()
        whiten, _ = self._whiten(self.inputs[rows[:, None], rows][None])
        explained = whiten[0].T @ self.inputs[rows]
        if self.targets is not self.inputs:
            self.targets.addmm_(explained.T, whiten[0].T @ self.targets[rows], alpha=-1)
        self.inputs.addmm_(explained.T, explained, alpha=-1)

    def _whiten(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps that whiten values with these covariances, and which directions have variance."""
        variances, directions = torch.linalg.eigh(blocks)
        alive = variances > self.floor
        scales = torch.where(alive, variances.clamp_min(self.floor).rsqrt(), 0.0)
        return directions * scales[:, None], alive  # columns without variance are zero


def choose_channels(stats: LayerInputStats, count: int) -> tuple[int, ...]:
    """Choose the channels that come first in :func:`order_channels`.

    Args:
        stats: Statistics of S channels.
        count: Number of channels to choose, at most S.

    Returns:
        Channel numbers in ascending order.
    """
    return tuple(sorted(order_channels(stats, count)))
