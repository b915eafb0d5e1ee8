"""Choose what the student keeps of a group's stacked channels: some of them, or a principal subspace.

Shapes: S stacked channels of a group, C channels that the student keeps, k values of one channel that one
output value of a layer sees, T outputs of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ka_ray.numerics.channel_selection import LayerInputStats, order_shared_channels


@dataclass(frozen=True)
class ChannelCode:
    """A linear code of stacked channels.

    Attributes:
        weight: `[C, S]`, float64; a row of a choice of channels has a single one.
        kept: The chosen channels; None for a principal code.
    """

    weight: Tensor
    kept: tuple[int, ...] | None = None

    def encode(self, stacked: Tensor) -> Tensor:
        """Return the code `[..., C]` of stacked features `[..., S]`."""
        if self.kept is not None:
            return stacked[..., list(self.kept)]
        return stacked @ self.weight.T.to(stacked)

    def squared(self) -> "ChannelCode":
        """Return the code of variances, as if the stacked channels were independent."""
        return replace(self, weight=self.weight.square())


def choice_of_channels(kept: Sequence[int], stacked: int) -> ChannelCode:
    """Return the code that consists of some of S stacked channels."""
    return ChannelCode(torch.eye(stacked, dtype=torch.float64)[list(kept)], tuple(kept))


DEAD_VARIANCE_SHARE = 1e-6
"""Directions whose variance is below this share of the largest one are rounding errors of float32."""

MAX_SINGLE_STEPS = 64
"""More channels than these are chosen in this many steps, several channels in each."""


def list_codes(readers: Sequence[LayerInputStats], channels: int, principal: bool) -> dict[str, ChannelCode]:
    """Return the codes of a group from which one is chosen, by how it is found.

    The channels that tell most of the targets are found greedily: where the targets are few, later ones
    explain noise. Then those of the largest variance predict other images better.

    Args:
        readers: Statistics of the layers that read the group; their targets in units of their size.
        channels: C.
        principal: Whether any linear code will do, because nothing non-linear acts on the channels.
    """
    first = readers[0]
    stacked = len(first.covariance) // first.num_values
    if channels == stacked:
        return {"all": choice_of_channels(range(stacked), stacked)}
    # Channels in ascending order, so that those of one teacher stay in their order.
    chosen = order_shared_channels(readers, channels, min(channels, MAX_SINGLE_STEPS))
    codes = {"principal": ChannelCode(_principal_code(readers, channels))} if principal else {}
    return codes | {
        "targets": choice_of_channels(sorted(chosen), stacked),
        "variance": choice_of_channels(_largest_variances(readers, channels, stacked), stacked),
    }


def _largest_variances(readers: Sequence[LayerInputStats], channels: int, stacked: int) -> list[int]:
    """Return the channels of the largest variance, in ascending order; every reader counts alike."""
    shares = torch.zeros(stacked, dtype=torch.float64, device=readers[0].covariance.device)
    for stats in readers:
        variances = stats.covariance.diagonal().unflatten(0, (stacked, -1)).sum(dim=1)
        shares += variances / variances.sum().clamp_min(1e-300)
    return sorted(shares.argsort(descending=True, stable=True)[:channels].tolist())


def _principal_code(readers: Sequence[LayerInputStats], channels: int) -> Tensor:
    """Return the best linear code, by reduced-rank regression of the layers' outputs on the channels."""
    stacked = len(readers[0].covariance) // readers[0].num_values
    covariance = readers[0].covariance.new_zeros(stacked, stacked)
    explained = torch.zeros_like(covariance)
    for stats in readers:
        assert stats.targets is not None
        # The values of a kernel count alike, as if the layer had read each of them by itself.
        for value in range(stats.num_values):
            rows = slice(value, None, stats.num_values)
            covariance += stats.covariance[rows, rows] / (stats.num_values * len(readers))
            explained += stats.targets[rows] @ stats.targets[rows].T
    variances, directions = torch.linalg.eigh(covariance)
    alive = variances > DEAD_VARIANCE_SHARE * variances.max()
    scales = torch.where(alive, variances.clamp_min(1e-300).rsqrt(), 0.0)
    whiten = directions * scales
    values, vectors = torch.linalg.eigh(whiten.T @ explained @ whiten)
    leading = vectors[:, -channels:].flip(1) * values[-channels:].flip(0).clamp_min(0).sqrt()
    code: Tensor = (whiten @ leading).T
    # As large as the channels are on average, so that weights are of the size that a network trains to.
    size = covariance.diagonal().mean() / (code @ covariance @ code.T).diagonal().mean().clamp_min(1e-300)
    return code * size.sqrt()
