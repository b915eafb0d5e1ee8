"""Count, mean and covariance of stacked features, as sums that merge.

Shapes: n positions, S stacked channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ka_ray.errors import InputError

BLOCK = 512
"""Columns of a sum of outer products that are added at once."""

GATHERED = 1024
"""So many rows are gathered before they are added: every addition reads and writes the whole sum."""


@dataclass(frozen=True)
class Moments:
    """Moments of `[n, S]` features in float64.

    Attributes:
        count: Number of positions.
        mean: `[S]`.
        scatter: `[S, S]`, sum of the outer products of ``x - mean``.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def empty(channels: int, device: torch.device | str = "cpu") -> "Moments":
        """Make the moments of no features at all, the neutral element of :meth:`merge`."""
        zeros = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        return Moments(0, zeros[0].clone(), zeros)

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Compute the moments of `[B, S, *space]` or `[n, S]` features over images and positions."""
        flat = features.flatten(2).transpose(1, 2).flatten(0, 1) if features.dim() > 2 else features
        flat = flat.to(torch.float64)
        mean = flat.mean(dim=0)
        centred = flat - mean
        return Moments(len(flat), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Merge two disjoint sets by Chan, Golub and LeVeque's update (1983), safe for large means."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter
        scatter.addr_(delta, delta, alpha=self.count * other.count / count)
        return Moments(count, mean, scatter)

    def merge_over_ranks(self) -> "Moments":
        """Merge the moments of all ranks of the process group; the same on every rank."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self
        packed = torch.cat([self.mean.new_tensor([self.count]), self.mean, self.scatter.flatten()])
        parts = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, packed)
        merged = Moments.empty(len(self.mean), self.mean.device)
        for part in parts:
            size = len(self.mean)
            merged = merged.merge(
                Moments(int(part[0]), part[1 : size + 1], part[size + 1 :].view(size, size))
            )
        return merged

    def cpu(self) -> "Moments":
        """Move to the CPU."""
        return Moments(self.count, self.mean.cpu(), self.scatter.cpu())

    def part(self, start: int, stop: int) -> "Moments":
        """Give the moments of channels ``start`` to ``stop`` alone."""
        return Moments(self.count, self.mean[start:stop], self.scatter[start:stop, start:stop])

    def select_channels(self, places: Sequence[int] | Tensor) -> "Moments":
        """Give the moments of some of the channels, in this order."""
        index = torch.as_tensor(places, device=self.mean.device)
        return Moments(self.count, self.mean[index], self.scatter[index[:, None], index])

    def mapped(self, weight: Tensor, bias: Tensor) -> "Moments":
        """Give the moments of ``weight x + bias``: `[D, S]` and `[D]`, on any device."""
        weight, bias = weight.to(self.mean), bias.to(self.mean)
        return Moments(self.count, weight @ self.mean + bias, weight @ self.scatter @ weight.T)

    @property
    def covariance(self) -> Tensor:
        """The covariance `[S, S]` (divided by the count)."""
        return self.scatter / max(self.count, 1)

    def check_variance(self) -> None:
        """Refuse features that are the same everywhere: no code can be learned, and no error is relative.

        Raises:
            InputError: The covariance is zero.
        """
        if not self.covariance.trace() > 0:
            raise InputError(
                "the stacked features never vary: every teacher is dead at this tap; drop the tap"
            )

    def spectrum(self) -> Tensor:
        """Compute the least relative error that a code can have, for every width.

        The best affine auto-encoder spans the principal subspace, so what is lost are the eigenvalues of the
        covariance past the C largest.

        Returns:
            `[S + 1]`, its index the width C: sum of the lost eigenvalues / sum of all, from 1 down to 0.

        Raises:
            InputError: The features never vary.
        """
        self.check_variance()
        ascending = torch.linalg.eigvalsh(self.covariance).clamp_min(0)
        lost: Tensor = torch.cat([ascending.new_zeros(1), ascending.cumsum(0)]) / ascending.sum()
        return lost.flip(0)

    def optimal_relative_error(self, code_channels: int) -> float:
        """Compute the least relative error of a code of this width; see :meth:`spectrum`."""
        return float(self.spectrum()[code_channels])


class MomentsMeter:
    """Adds features up in place: merging batch by batch would write several `[S, S]` matrices for each.

    What is summed are deviations from the mean of the first rows, so that a large mean cancels nothing, and
    of the symmetric sum of outer products little more than one triangle (Chan, Golub and LeVeque, 1983).

    Args:
        channels: S.
        device: Where it is summed.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self._count, self._device = 0, device
        self._gathered: list[Tensor] = []
        self._shift = self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._outer = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add features `[n, S]` or `[B, S, *space]`."""
        flat = features.flatten(2).transpose(1, 2).flatten(0, 1) if features.dim() > 2 else features
        self._gathered.append(flat.to(self._device))
        if sum(map(len, self._gathered)) >= GATHERED:
            self._add_gathered()

    def _add_gathered(self) -> None:
        flat = torch.cat([part.to(torch.float64) for part in self._gathered])
        self._gathered.clear()
        if not len(flat):
            return
        if not self._count:
            self._shift, self._sum = flat.mean(dim=0), torch.zeros_like(self._sum)
        deviations = flat - self._shift
        self._count += len(flat)
        self._sum += deviations.sum(dim=0)
        for start in range(0, len(self._outer), BLOCK):
            stop = start + BLOCK
            self._outer[:stop, start:stop].addmm_(deviations[:, :stop].T, deviations[:, start:stop])

    @property
    def total(self) -> Moments:
        """The moments of all that was added."""
        if self._gathered:
            self._add_gathered()
        mean, scatter = self._sum / max(self._count, 1), self._outer.triu()
        scatter += scatter.triu(1).T
        scatter.addr_(mean, mean, alpha=-self._count)
        return Moments(self._count, self._shift + mean, scatter)
