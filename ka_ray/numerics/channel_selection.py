"""Choose the channels that tell most of what a layer should give."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEAD = 1e-12
"""What has less than this share of the largest variance left is told by the channels chosen before it."""


@dataclass(frozen=True)
class LayerInputStats:
    """What the next layer sees of a tap's channels.

    Attributes:
        covariance: `[S k, S k]`, channel by channel: a conv sees k values of a channel at once, activated.
        targets: `[S k, T]`, covariance of these with what the layer should give; None: to tell the values
            themselves is what counts.
        num_values: k.
    """

    covariance: Tensor
    targets: Tensor | None = None
    num_values: int = 1

    def select_channels(self, channels: Sequence[int]) -> "LayerInputStats":
        """Give what is seen of some channels alone."""
        start = torch.as_tensor(channels, device=self.covariance.device)[:, None] * self.num_values
        places = (start + torch.arange(self.num_values, device=start.device)).flatten()
        targets = None if self.targets is None else self.targets[places]
        return LayerInputStats(self.covariance[places[:, None], places], targets, self.num_values)


def order_channels(seen: LayerInputStats, count: int) -> tuple[int, ...]:
    """Order channels so that an affine map from the first ones tells the next layer's targets best.

    Each next channel is the one whose removal by regression takes away most of the targets' variance that is
    left: forward selection, a channel's k values together. Column-pivoted QR, the usual choice, looks at the
    channels' own variance alone. That the targets are what the *next* layer should give keeps what is of use
    there; the covariance and not the second moment counts, because that layer has a bias.

    Args:
        seen: Of S channels.
        count: How many, at most S; more just continue the order.

    Returns:
        The channels, the first chosen first.
    """
    left = seen.covariance.to(torch.float64, copy=True)
    told = left if seen.targets is None else seen.targets.to(torch.float64, copy=True)
    values, channels = seen.num_values, len(left) // seen.num_values
    floor = DEAD * left.diagonal().max().clamp_min(1e-300)
    chosen: list[int] = []
    for _ in range(count):
        blocks = left.unflatten(0, (channels, values)).unflatten(2, (channels, values))
        variances, directions = torch.linalg.eigh(blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        alive = variances > floor
        scales = torch.where(alive, variances.clamp_min(floor).rsqrt(), 0.0)
        whiten = directions * scales[:, None]  # [S, k, k]: columns of no variance are zero
        gain = (whiten.transpose(1, 2) @ told.unflatten(0, (channels, values))).square().sum(dim=(1, 2))
        gain = torch.where(alive.any(dim=1), gain, -1.0)
        gain[chosen] = -torch.inf
        best = int(gain.argmax())
        chosen.append(best)
        rows = slice(best * values, (best + 1) * values)
        taken = whiten[best].T @ left[rows]
        if told is not left:
            told.addmm_(taken.T, whiten[best].T @ told[rows], alpha=-1)
        left.addmm_(taken.T, taken, alpha=-1)
    return tuple(chosen)


def choose_channels(seen: LayerInputStats, count: int) -> tuple[int, ...]:
    """Choose channels, see :func:`order_channels`; ascending."""
    return tuple(sorted(order_channels(seen, count)))
