"""Fit the weight and bias of a layer norm whose output is no layer's input alone.

Shapes: B images of a batch, P sampled positions, n samples, C channels of the student.
"""

import torch
from torch import Tensor, fx

from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.samples import Merge, merged_moments
from ka_ray.student.channel_codes import ChannelCode
from ka_ray.student.lockstep import Lockstep
from ka_ray.student.stacked_networks import StackedNetworks, sample_values

SAMPLES = 4000
"""Number of samples; each channel has two unknowns."""


def fit_norm(
    networks: StackedNetworks, values: Lockstep, node: fx.Node, code: ChannelCode, merge: Merge
) -> None:
    """Fit a layer norm of the student to the code of the teachers' values behind it, channel by channel.

    Args:
        networks: The teachers and the student, whose norm has the weight 1 and the bias 0.
        values: Their values, computed at the node for all networks.
        node: Node of the norm.
        code: Code of its group.
        merge: Adds a float64 tensor up over all ranks.
    """
    samples = _sample(networks, values, node, code)
    moments = merged_moments(samples, merge)
    mean = torch.stack([part.mean for part in moments])
    covariance = torch.stack([part.covariance for part in moments])
    weight = covariance[:, 0, 1] / covariance[:, 0, 0].clamp_min(1e-12)
    norm = networks.norms[node].norm(networks.student)
    norm.weight.copy_(weight)
    norm.bias.copy_(mean[:, 1] - weight * mean[:, 0])


def _sample(networks: StackedNetworks, values: Lockstep, node: fx.Node, code: ChannelCode) -> Tensor:
    """Return `[n, C, 2]`: the student's normalised values, and the codes that they should become."""
    axis, generator, samples = networks.axis(node), torch.Generator().manual_seed(0), list[Tensor]()
    wanted = max(1, SAMPLES // max(1, values.num_images))
    for batch in range(len(values)):
        *teachers, own = values.values(node, batch, slice(None))
        random = torch.rand(len(own), generator=generator)
        positions = sample_positions(random, networks.num_positions(node), wanted).to(own.device)
        stacked = torch.cat([sample_values(value, axis, positions) for value in teachers], dim=2)
        pair = (sample_values(own, axis, positions), networks.encode(node, code, stacked))
        samples.append(torch.stack(pair, dim=3).flatten(0, 1))
    return torch.cat(samples)
