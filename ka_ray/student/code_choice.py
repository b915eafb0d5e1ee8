"""Choose the code of every group of channels, from one pass of the teachers over some images.

Some of the images are held out: on them, the ways to find a code are compared.

Shapes: S stacked channels, D inputs and T outputs of a layer of the stacked teachers, n held-out samples, C
channels of a code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ka_ray.numerics.channel_selection import LayerInputStats
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.samples import CrossMoments, Merge, merged_cross_moments
from ka_ray.student.channel_codes import ChannelCode, list_codes
from ka_ray.student.code_checks import refuse_unread
from ka_ray.student.graph_nodes import is_image
from ka_ray.student.linear_layers import extract_patches
from ka_ray.student.lockstep import Lockstep
from ka_ray.student.solvable_layers import SolvableLayer
from ka_ray.student.stacked_networks import StackedNetworks, sample_values

SAMPLES_PER_INPUT = 8
"""Number of samples per input of a layer that its statistics are measured on."""

MIN_SAMPLES = 8000
"""The statistics of a layer with few inputs are measured on this many samples."""

MAX_INPUTS = 3000
"""Of layers with more inputs, the statistics are those of the mean over the kernel: a 3x3 conv that reads
1024 stacked channels has 9216 inputs, whose covariance takes 680 MB."""


HOLD_OUT_EVERY = 4
"""One of so many images is held out."""

JUDGING_RIDGES = (1e-4, 1e-3, 1e-2)
"""Candidates for the ridge with which codes are compared, in units of the mean variance of an input."""


@dataclass(frozen=True)
class Reader:
    """Statistics of a layer that reads a group, for all stacked channels.

    Attributes:
        output: Node of the layer's outputs.
        target: Index of their group.
        moments: Covariances of its inputs and outputs.
        held_inputs: This rank's held-out inputs, `[n, D]`.
        held_outputs: This rank's held-out outputs, `[n, T]`.
    """

    output: fx.Node
    target: int
    moments: CrossMoments
    held_inputs: Tensor
    held_outputs: Tensor

    def towards(self, networks: StackedNetworks, code: ChannelCode | None, stacked: int) -> LayerInputStats:
        """Return the statistics with the coded outputs as targets, in units of their size.

        Args:
            networks: The teachers and the student.
            code: Code of the outputs; None: all outputs are targets.
            stacked: S of the group that is read.
        """
        inputs, cross, variance = self.moments.inputs, self.moments.cross, self.moments.outputs
        if code is not None:
            cross = networks.encode(self.output, code, cross)
            # As if outputs were independent; it only weighs this layer against the others.
            variance = networks.encode(self.output, code.squared(), variance)
        scale = variance.sum().clamp_min(1e-300).sqrt()
        return LayerInputStats(inputs, cross / scale, len(inputs) // stacked)

    def held_out_error(
        self, networks: StackedNetworks, code: ChannelCode, target: ChannelCode | None, merge: Merge
    ) -> float:
        """Return the share of the targets' variance that a code does not predict, on held-out images.

        Args:
            networks: The teachers and the student.
            code: Code of the group that is read.
            target: Code of the outputs; None: all outputs are targets.
            merge: Adds a float64 tensor up over all ranks; it is called twice.
        """
        inputs, cross, outputs = self.moments.inputs, self.moments.cross, self.held_outputs.double()
        if target is not None:
            cross, outputs = (networks.encode(self.output, target, values) for values in (cross, outputs))
        values = len(inputs) // code.weight.shape[1]
        own = _encode_inputs(code, values, _encode_inputs(code, values, inputs).T)
        cross = _encode_inputs(code, values, cross.T).T
        held = _encode_inputs(code, values, self.held_inputs.double())
        sums = merge(torch.cat([x.sum(dim=0) for x in (held, outputs, torch.ones_like(outputs[:, :1]))]))
        means = sums[:-1] / sums[-1].clamp_min(1)
        held, outputs = held - means[: held.shape[1]], outputs - means[held.shape[1] :]
        # Above 0 also for inputs that never vary, which tell nothing.
        size = own.diagonal().mean().clamp_min(1e-30)
        unit = torch.eye(len(own), dtype=own.dtype, device=own.device)
        weights = (torch.linalg.solve(own + ridge * size * unit, cross) for ridge in JUDGING_RIDGES)
        left = [(outputs - held @ weight).square().sum() for weight in weights]
        errors = merge(torch.stack([*left, outputs.square().sum()]))
        return float(errors[:-1].min() / errors[-1].clamp_min(1e-300))


def _encode_inputs(code: ChannelCode, values: int, inputs: Tensor) -> Tensor:
    """Return the inputs of a layer, `[..., D]`, as the code has them: k values of each channel."""
    channels = inputs.unflatten(-1, (-1, values)).movedim(-2, -1)
    return code.encode(channels).movedim(-1, -2).flatten(-2)


def choose_codes(
    networks: StackedNetworks, inputs: Sequence[Sequence[Tensor]], merge: Merge
) -> dict[int, ChannelCode]:
    """Choose the code of every group whose channels are not fixed.

    Args:
        networks: The teachers and the student.
        inputs: For each batch, the input of each network, `[B, C, H, W]`.
        merge: Adds a float64 tensor up over all ranks.

    Returns:
        Index of a group -> its code, the same on all ranks.

    Raises:
        InputError: No layer reads a group.
    """
    readers = measure_readers(networks, inputs, merge)
    codes: dict[int, ChannelCode] = {}
    # A stream, which several layers add to, is chosen before the channels inside of its blocks, and what is
    # computed later before what leads to it: then it is known what of their targets the student keeps.
    for index in sorted(readers, key=lambda index: (not is_stream(networks, index), -index)):
        group = networks.groups[index]
        stacked = networks.stacked[index]
        stats = [reader.towards(networks, codes.get(reader.target), stacked) for reader in readers[index]]
        # A depthwise conv maps each channel to itself, so its channels cannot be mixed.
        principal = group.is_linear and "depthwise" not in group.operations
        found = list_codes(stats, group.width, principal)
        codes[index] = _choose(networks, readers[index], found, codes, merge)
    refuse_unread(networks, codes.keys())
    return codes


def _choose(
    networks: StackedNetworks,
    readers: Sequence[Reader],
    found: Mapping[str, ChannelCode],
    targets: Mapping[int, ChannelCode],
    merge: Merge,
) -> ChannelCode:
    """Return the code from which the layers that read a group are predicted best, on held-out images."""
    if len(found) == 1:
        return next(iter(found.values()))
    errors = {
        name: sum(
            reader.held_out_error(networks, code, targets.get(reader.target), merge) for reader in readers
        )
        for name, code in found.items()
    }
    return found[min(errors, key=errors.__getitem__)]


def is_stream(networks: StackedNetworks, index: int) -> bool:
    """Return whether something is added to the values of a group, as in the stream of a residual network."""
    return any(
        networks.group_index(root) == index and len(total.layers) + len(total.others) > 1
        for root, total in networks.sums.items()
    )


def measure_readers(
    networks: StackedNetworks, inputs: Sequence[Sequence[Tensor]], merge: Merge
) -> dict[int, list[Reader]]:
    """Measure the statistics of all layers: index of a group that is not fixed -> the layers that read it."""
    layers = {layer.output: layer for layer in networks.layers if not networks.is_tied(layer)}
    values, readers = networks.start_teachers(), dict[int, list[Reader]]()
    for batch in inputs:
        values.add(batch[:-1], networks.first_node)
    for node in networks.graph.nodes:
        if node.op == "output":
            break
        if not is_image(node):
            values.compute(node, slice(None))
        if node in layers and not networks.group(layers[node].source).fixed:
            source = networks.group_index(layers[node].source)
            readers.setdefault(source, []).append(_measure_reader(networks, values, layers[node], merge))
        values.forget_after(node)
    return readers


def _measure_reader(
    networks: StackedNetworks, values: Lockstep, layer: SolvableLayer, merge: Merge
) -> Reader:
    """Measure the statistics of one layer of the stacked teachers."""
    module, target = layer.layer(networks.student), networks.group_index(layer.output)
    kernel = module.weight[0, 0].numel()
    num_inputs = sum(layer.layer(teacher).weight[0].numel() for teacher in networks.networks[:-1])
    is_mean = kernel > 1 and num_inputs > MAX_INPUTS
    num_inputs = num_inputs // kernel if is_mean else num_inputs
    available = networks.num_positions(layer.output)
    wanted = max(MIN_SAMPLES, SAMPLES_PER_INPUT * num_inputs) // max(1, values.num_images)
    generator, inputs, outputs = torch.Generator().manual_seed(0), list[Tensor](), list[Tensor]()
    held, number = list[Tensor](), 0
    for batch in range(len(values)):
        features, results = (
            torch.cat(values.values(node, batch, slice(networks.num_teachers)), dim=networks.axis(node))
            for node in (layer.source, layer.output)
        )
        positions = sample_positions(
            torch.rand(len(features), generator=generator), available, max(1, wanted)
        )
        positions = positions.to(features.device)
        patches = extract_patches(module, features, positions)[:, :, 0].flatten(0, 1)
        inputs.append(patches.unflatten(1, (-1, kernel)).mean(dim=2) if is_mean else patches)
        outputs.append(sample_values(results, networks.axis(layer.output), positions).flatten(0, 1))
        images = torch.arange(number, number + len(features), device=features.device)
        is_held = images % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
        held.append(is_held.repeat_interleave(len(patches) // len(features)))
        number += len(features)
    rows, results, is_held = torch.cat(inputs), torch.cat(outputs), torch.cat(held)
    moments = merged_cross_moments(rows[~is_held], results[~is_held], merge)
    return Reader(layer.output, target, moments, rows[is_held], results[is_held])
