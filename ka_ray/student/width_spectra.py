"""Measure how many principal components the stacked teachers' features have, group by group.

Shapes: S stacked channels of a group, B images of a batch, P sampled positions of an image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.numerics.positions import sample_positions
from ka_ray.student.stacked_networks import StackedNetworks, sample_values

POSITIONS_PER_IMAGE = 16
"""Number of positions of a map that are sampled; adjacent ones tell nearly the same."""


ROUNDING = 1e-12
"""A variance below this share of the squared mean is rounding of float32 values."""


@dataclass(frozen=True)
class GroupSpectrum:
    """The principal components of a group's stacked features.

    Attributes:
        variances: `[S]`, float64, in descending order; their sum is 1.
    """

    variances: Tensor

    def count_components(self, share: float) -> int:
        """Return the least number of components that hold a share of the variance.

        Args:
            share: In (0, 1].
        """
        held = self.variances.cumsum(0)
        # Rounding must not ask for the components without variance, too.
        return int((held < share - 1e-12).sum()) + 1

    @staticmethod
    def of(moments: Sequence[Moments]) -> "GroupSpectrum":
        """Compute the spectrum of a group from the moments of its features wherever they are.

        A residual stream is there behind every block. Its code is the same everywhere, so the covariances are
        added up, each relative to its trace, so that every place counts alike.

        Args:
            moments: The moments at each place, at all of which the features vary.
        """
        scaled = [part.covariance / part.covariance.trace() for part in moments]
        covariance = torch.stack(scaled).mean(dim=0)
        variances = torch.linalg.eigvalsh(covariance).clamp_min(0).flip(0)
        return GroupSpectrum(variances / variances.sum())


@torch.no_grad()
def measure_group_spectra(
    networks: StackedNetworks, batches: Iterable[Sequence[Tensor]]
) -> dict[int, GroupSpectrum]:
    """Measure the spectra of all groups whose channels the student chooses, over all ranks.

    The features are those before the activation, where a layer, or a sum of layers, ends.

    Args:
        networks: The teachers, and a student.
        batches: This rank's images, possibly none: the input of each teacher, `[B, C, H, W]`.

    Returns:
        Index of a group -> its spectrum, the same on all ranks.

    Raises:
        InputError: There are no images, or the features of a group never vary.
    """
    roots = {root: networks.group_index(root) for root in networks.sums if root is not networks.output}
    device = next(networks.student.parameters()).device
    # All ranks merge the same sums, also one without images.
    meters = {root: MomentsMeter(networks.stacked[index], device) for root, index in roots.items()}
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        for root, rows in _compute_rows(networks, batch, set(roots), generator).items():
            meters[root].add(rows)
    by_group = dict[int, list[Moments]]()
    for root, index in roots.items():
        by_group.setdefault(index, []).append(meters[root].total.merge_over_ranks())
        if not by_group[index][-1].count:
            raise InputError("student.widths.energy: there are no images; give more images")
    varying = {index: [part for part in moments if _varies(part)] for index, moments in by_group.items()}
    if constant := [index for index, moments in varying.items() if not moments]:
        name = networks.groups[constant[0]].values[0].name
        raise InputError(f"student.widths.energy: the teachers' features at {name!r} never vary")
    return {index: GroupSpectrum.of(moments) for index, moments in varying.items()}


def _varies(moments: Moments) -> bool:
    """Return whether features vary by more than rounding."""
    return bool(moments.covariance.trace() > ROUNDING * moments.mean.square().sum())


def _compute_rows(
    networks: StackedNetworks, batch: Sequence[Tensor], roots: set[fx.Node], generator: torch.Generator
) -> Mapping[fx.Node, Tensor]:
    """Compute the stacked features of a batch at the ends of sums, `[B * P, S]`."""
    values, found = networks.start_teachers(), dict[fx.Node, Tensor]()
    values.add(batch, networks.first_node)
    for node in networks.graph.nodes:
        if node.op == "output":
            break
        if node.op == "placeholder":
            continue
        values.compute(node, slice(None))
        if node in roots:
            draws = torch.rand(len(batch[0]), generator=generator)
            positions = sample_positions(draws, networks.num_positions(node), POSITIONS_PER_IMAGE)
            positions, axis = positions.to(batch[0].device), networks.axis(node)
            parts = [sample_values(v, axis, positions) for v in values.values(node, 0, slice(None))]
            found[node] = torch.cat(parts, dim=2).flatten(0, 1)
        values.forget_after(node)
    return found
