"""Collect the samples that a sum of layers is solved from.

Shapes: B images of a batch, P sampled positions, n samples, G groups of the layers, D inputs and T outputs of
one group, C channels of the student at the sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.amalgamation import LabelSets
from ka_ray.errors import InputError
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.ranks import on_any_rank
from ka_ray.numerics.samples import LayerSamples
from ka_ray.student.channel_codes import ChannelCode
from ka_ray.student.linear_layers import ConvOrLinear, extract_patches
from ka_ray.student.lockstep import Lockstep
from ka_ray.student.solvable_sums import SolvableSum
from ka_ray.student.stacked_networks import StackedNetworks, sample_values

HELD_OUT_EVERY = 10
"""Every tenth image is held out from solving a layer, and chooses its ridge."""

MIN_IMAGES = 2 * HELD_OUT_EVERY
"""Memory for fewer images on a rank is refused: hardly any of them would be held out."""


@dataclass(frozen=True)
class SampleLimits:
    """How many samples a layer is solved from.

    Attributes:
        per_input: Number of samples per input of the layer.
        minimum: Number of samples of a layer with few inputs.
        values: Largest number of values, inputs and targets, of all samples.
    """

    per_input: int = 100
    minimum: int = 4000
    values: float = 1e8

    def count(self, num_inputs: int, row: int) -> int:
        """Return the number of samples of a layer.

        Args:
            num_inputs: D.
            row: Number of values of one sample, ``G (D + T)``.
        """
        return int(min(self.values / row, max(self.minimum, self.per_input * num_inputs)))


def check_memory(networks: StackedNetworks, memory_gib: float) -> None:
    """Check that the values of some images fit into the memory; all ranks call this together.

    Args:
        networks: The teachers and the student.
        memory_gib: Largest size of the values of all networks on this rank, in GiB.

    Raises:
        InputError: They do not fit, on one of the ranks.
    """
    if on_any_rank(networks.max_images(networks.first_node, memory_gib) < MIN_IMAGES):
        raise InputError(
            f"student.start exact: too little memory is free for the values of {MIN_IMAGES} images in each "
            f"process ({memory_gib:.2g} GiB in this one); free some, or take another start"
        )


@dataclass(frozen=True)
class SumSamples:
    """Samples of the layers of a sum.

    Attributes:
        layers: Inputs of all layers side by side, and what they should add up to.
        others: `[n, G, T]`, the sum of the other summands; 0 if there is none.
    """

    layers: LayerSamples
    others: Tensor


class SumSampler:
    """Samples inputs and targets of the sums of a student.

    Args:
        networks: The teachers and the student.
        codes: Index of a group -> its code.
        label_sets: Combine the teachers' scores into the target of the last layer.
        limits: Number of samples.
    """

    def __init__(
        self,
        networks: StackedNetworks,
        codes: dict[int, ChannelCode],
        label_sets: LabelSets,
        limits: SampleLimits,
    ) -> None:
        self._networks, self._codes, self._label_sets = networks, codes, label_sets
        self._limits = limits

    def sample(self, values: Lockstep, total: SolvableSum, seed: int) -> SumSamples:
        """Sample all images.

        Args:
            values: The values of all networks.
            total: The sum, at which the teachers' values have been computed.
            seed: Seed of the positions.
        """
        modules = [layer.layer(self._networks.student) for layer in total.layers]
        groups = {getattr(module, "groups", 1) for module in modules}
        if len(groups) > 1 or (max(groups) > 1 and len(modules) > 1):
            raise InputError(
                "student.start exact: the outputs of several convs with groups are added "
                f"({', '.join(layer.path for layer in total.layers)}); that is not supported"
            )
        joint, others, held_out = list[Tensor](), list[Tensor](), list[Tensor]()
        rows = self._sample_batches(values, total, modules, seed)
        for number, (inputs, target, added) in enumerate(rows):
            joint.append(torch.cat([inputs, target], dim=3).flatten(0, 1))
            others.append(added.flatten(0, 1))
            first = sum(len(values.value(total.root, b, 0)) for b in range(number))
            is_held = torch.arange(first, first + len(inputs)) % HELD_OUT_EVERY == 0
            held_out.append(is_held.repeat_interleave(inputs.shape[1]))
        num_outputs = len(modules[0].weight) // max(groups)
        samples = LayerSamples(torch.cat(joint), torch.cat(held_out).to(joint[0].device), num_outputs)
        return SumSamples(samples, torch.cat(others))

    def _sample_batches(
        self, values: Lockstep, total: SolvableSum, modules: list[ConvOrLinear], seed: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield inputs `[B, P, G, D]`, targets and other summands `[B, P, G, T]` of each batch."""
        groups = getattr(modules[0], "groups", 1)
        num_inputs = sum(module.weight[0].numel() for module in modules)
        row = groups * num_inputs + len(modules[0].weight)
        wanted = max(1, self._limits.count(num_inputs, row) // max(1, values.num_images))
        available = self._networks.num_positions(total.root)
        generator = torch.Generator().manual_seed(seed)
        for batch in range(len(values)):
            count = len(values.value(total.root, batch, 0))
            positions = sample_positions(torch.rand(count, generator=generator), available, wanted)
            positions = positions.to(values.value(total.root, batch, 0).device)
            inputs = [
                extract_patches(module, values.value(layer.source, batch), positions)
                for layer, module in zip(total.layers, modules, strict=True)
            ]
            target, added = self._target(values, total, batch, positions)
            parts = (part.unflatten(2, (groups, -1)) for part in (target - added, added))
            yield torch.cat(inputs, dim=3), *parts

    def _target(
        self, values: Lockstep, total: SolvableSum, batch: int, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the code of the stacked teachers' sum and the student's other summands, `[B, P, C]`."""
        networks = self._networks
        axis, teachers = networks.axis(total.root), slice(networks.num_teachers)
        parts = [sample_values(v, axis, positions) for v in values.values(total.root, batch, teachers)]
        stacked = torch.cat(parts, dim=2)
        if total.root is networks.output:
            target = self._label_sets.amalgamate(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])
        else:
            target = networks.encode(total.root, self._codes[networks.group_index(total.root)], stacked)
        added = torch.zeros_like(target)
        for other in total.others:
            added += sample_values(values.value(other, batch), networks.axis(other), positions)
        return target, added
