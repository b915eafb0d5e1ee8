"""Count, mean and covariance of features, in a form that can be merged over batches and workers.

Shapes: B images, S channels (of stacked features, for example), *space height and width, n positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.numerics.ranks import sum_over_ranks, world_size

BLOCK_COLUMNS = 512
"""Number of columns of the sum of outer products that one matrix product updates.

Fewer columns per product compute less below the diagonal, but in smaller and so slower products.
"""

BUFFERED_ROWS = 1024
"""Rows that are collected before they are added: every addition reads and writes the whole `[S, S]` sum."""


@dataclass(frozen=True)
class Moments:
    """Moments of `[n, S]` features in float64.

    Attributes:
        count: n, the number of positions.
        mean: `[S]`.
        scatter: `[S, S]`, sum of the outer products of ``x - mean``.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def empty(channels: int, device: torch.device | str = "cpu") -> "Moments":
        """Create the moments of no features, the neutral element of :meth:`merge`.

        Args:
            channels: S.
            device: Device of the tensors.
        """
        zeros = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        return Moments(0, zeros[0].clone(), zeros)

    @staticmethod
    def of(features: Tensor) -> "Moments":
        """Compute the moments of `[B, S, *space]` or `[n, S]` features over images and positions."""
        flat = _flatten_positions(features).to(torch.float64)
        if not len(flat):
            return Moments.empty(flat.shape[1], flat.device)
        mean = flat.mean(dim=0)
        centred = flat - mean
        return Moments(len(flat), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Merge with the moments of other positions (Chan, Golub and LeVeque, 1983).

        Sums of raw outer products would be simpler, but lose all digits where means are large.
        """
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter
        scatter.addr_(delta, delta, alpha=self.count * other.count / count)
        return Moments(count, mean, scatter)

    def merge_over_ranks(self) -> "Moments":
        """Merge the moments of all ranks of the process group; every rank gets the same result.

        The formula of :meth:`merge` for any number of parts: all scatter matrices, and the outer product of
        the distance of each part's mean from the common one, add up (Chan, Golub and LeVeque, 1983). So one
        more matrix is needed than these moments have, whatever the number of ranks is.
        """
        if world_size() == 1:
            return self
        # Without positions, the mean may be anything, also not a number.
        total = self.mean * self.count if self.count else torch.zeros_like(self.mean)
        sums = sum_over_ranks(torch.cat([total.new_tensor([self.count]), total]))
        count = int(sums[0])
        if not count:
            return self
        mean = sums[1:] / count
        scatter = self.scatter.clone(memory_format=torch.contiguous_format)
        if self.count:
            scatter.addr_(self.mean - mean, self.mean - mean, alpha=self.count)
        dist.all_reduce(scatter)  # in place; `sum_over_ranks` would copy the matrix once more
        # Elements above and below the diagonal may have been added in another order.
        return Moments(count, mean, _mirror_upper(scatter))

    def cpu(self) -> "Moments":
        """Return these moments on the CPU."""
        return Moments(self.count, self.mean.cpu(), self.scatter.cpu())

    def slice_channels(self, start: int, stop: int) -> "Moments":
        """Return the moments of a range of channels.

        Args:
            start: First channel.
            stop: The channel after the last one.
        """
        return Moments(self.count, self.mean[start:stop], self.scatter[start:stop, start:stop])

    def select_channels(self, channels: Sequence[int] | Tensor) -> "Moments":
        """Return the moments of some channels, in the given order."""
        index = torch.as_tensor(channels, device=self.mean.device)
        return Moments(self.count, self.mean[index], self.scatter[index[:, None], index])

    def apply_affine(self, weight: Tensor, bias: Tensor) -> "Moments":
        """Return the moments of ``weight x + bias``.

        Args:
            weight: `[D, S]`, on any device.
            bias: `[D]`, on any device.
        """
        weight, bias = weight.to(self.mean), bias.to(self.mean)
        return Moments(self.count, weight @ self.mean + bias, weight @ self.scatter @ weight.T)

    def expected_squared_norm(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute ``E||weight x + bias||^2`` in closed form, exact over all positions.

        Args:
            weight: `[D, S]`, float64, on the device of the moments.
            bias: `[D]`, float64, on the device of the moments.

        Returns:
            A scalar: the trace of the covariance of ``weight x`` plus the squared norm of the mean.
        """
        # The elementwise product gives the trace of W Cov W' without a second matrix product.
        spread = (weight @ self.covariance * weight).sum()
        return spread + (weight @ self.mean + bias).square().sum()

    @property
    def covariance(self) -> Tensor:
        """The `[S, S]` covariance, divided by the count."""
        return self.scatter / max(self.count, 1)

    def check_variance(self) -> None:
        """Refuse features that are constant: there is nothing to learn, and the relative error is undefined.

        Raises:
            InputError: The covariance is zero.
        """
        if not self.covariance.trace() > 0:
            raise InputError(
                "the stacked features never vary: every teacher gives the same features for every image at "
                "this tap; remove the tap from the config or check the teachers' checkpoints"
            )

    def spectrum(self) -> Tensor:
        """Compute the smallest possible relative error of a code, for every width.

        The best affine auto-encoder of width C spans the C leading principal directions, so it loses the
        eigenvalues of the covariance after the C largest (Baldi and Hornik, 1989).

        Returns:
            `[S + 1]`, indexed by the width C: sum of the lost eigenvalues / sum of all, from 1 down to 0.

        Raises:
            InputError: The features never vary.
        """
        self.check_variance()
        ascending = torch.linalg.eigvalsh(self.covariance).clamp_min(0)
        # Rounding can make the smallest eigenvalues slightly negative, hence the clamp.
        lost: Tensor = torch.cat([ascending.new_zeros(1), ascending.cumsum(0)]) / ascending.sum()
        return lost.flip(0)

    def optimal_relative_error(self, code_channels: int) -> float:
        """Compute the smallest possible relative error of a code of this width; see :meth:`spectrum`."""
        return float(self.spectrum()[code_channels])


class MomentsMeter:
    """Accumulates the moments of features in place.

    Merging :class:`Moments` batch by batch would allocate several `[S, S]` matrices per batch. The meter sums
    deviations from the mean of the first rows, so that a large mean costs no precision (Chan, Golub and
    LeVeque, 1983), and computes little more than one triangle of the symmetric sum.

    Args:
        channels: S.
        device: Device of the sums.
    """

    def __init__(self, channels: int, device: torch.device | str = "cpu") -> None:
        self._count, self._device = 0, device
        self._buffer: list[Tensor] = []
        self._shift = self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._outer = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """Add `[n, S]` or `[B, S, *space]` features."""
        self._buffer.append(_flatten_positions(features).to(self._device))
        if sum(map(len, self._buffer)) >= BUFFERED_ROWS:
            self._add_buffer()

    def _add_buffer(self) -> None:
        flat = torch.cat([part.to(torch.float64) for part in self._buffer])
        self._buffer.clear()
        if not len(flat):
            return
        if not self._count:  # the first rows fix the shift that all deviations are taken from
            self._shift, self._sum = flat.mean(dim=0), torch.zeros_like(self._sum)
        deviations = flat - self._shift
        self._count += len(flat)
        self._sum += deviations.sum(dim=0)
        for start in range(0, len(self._outer), BLOCK_COLUMNS):
            stop = start + BLOCK_COLUMNS
            # Rows below the block are left out; `total` mirrors the upper triangle.
            self._outer[:stop, start:stop].addmm_(deviations[:, :stop].T, deviations[:, start:stop])

    @property
    def total(self) -> Moments:
        """The moments of everything that was added so far."""
        if self._buffer:
            self._add_buffer()
        mean, scatter = self._sum / max(self._count, 1), _mirror_upper(self._outer.clone())
        # From deviations around the shift to deviations around the mean.
        scatter.addr_(mean, mean, alpha=-self._count)
        return Moments(self._count, self._shift + mean, scatter)


def _flatten_positions(features: Tensor) -> Tensor:
    """Bring `[B, S, *space]` to `[B * positions, S]`; `[n, S]` stays as it is."""
    return features.flatten(2).transpose(1, 2).flatten(0, 1) if features.dim() > 2 else features


def _mirror_upper(matrix: Tensor) -> Tensor:
    """Copy the upper triangle of a `[S, S]` matrix to the lower one in place, block by block."""
    for start in range(0, len(matrix), BLOCK_COLUMNS):
        stop = start + BLOCK_COLUMNS
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        block = matrix[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
    return matrix
