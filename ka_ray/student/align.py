"""Align the channels of networks that were trained apart, so that their weights can be averaged.

Two such networks may have learned the same features in different orders. Matching channels by the correlation
of their activations is "activation matching" of Git Re-Basin (2209.04836); ZipIt (2305.03053) uses the same
measure.

Shapes: C channels of a group, B images, P positions of an image.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, fx, nn

from ka_ray.errors import InputError
from ka_ray.student.channel_groups import ChannelGroup, ChannelGroups, Place, permute_channels
from ka_ray.student.channel_shapes import SHAPE_RULES
from ka_ray.student.trace import eval_mode, trace_network

MAX_POSITIONS = 196
"""Number of positions of an image that are compared at most; adjacent ones tell nearly the same."""

# Correlations do not change when channels are only moved, scaled or shifted.
_COPIES = {"batch_norm", "layer_scale", "identity", "dropout"} | SHAPE_RULES.keys() - {
    "mean",
    "sum",
    "amax",
    "amin",
}


@dataclass(frozen=True)
class Alignment:
    """A network whose channels have the order of another network.

    Attributes:
        state: Its state dict; it computes the same as before.
        orders: Index of a group -> `[C]`, the old channel that each new one is.
        correlation_before: Mean correlation, over all channels, of those with one index in both networks. It
            is close to 1 for networks of one origin, and to 0 for networks that were trained apart. Channels
            that never change, such as dead ones behind a ReLU, are left out.
        correlation_after: The same after the alignment.
    """

    state: dict[str, Tensor]
    orders: Mapping[int, Tensor]
    correlation_before: float
    correlation_after: float


@torch.no_grad()
def align_channels(
    reference: nn.Module,
    other: nn.Module,
    groups: ChannelGroups,
    batches: Iterable[tuple[Tensor, Tensor]],
    merge: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Alignment:
    """Permute the channels of a network so that they correlate best with those of a reference.

    A group is matched by the sum of the correlations of all its values. Fixed groups stay as they are. Only
    sums of the size C x C are kept of the images.

    Args:
        reference: The network whose order is kept.
        other: A network of the same architecture; the number of classes may differ. It stays unchanged.
        groups: The groups of the reference, see :func:`~ka_ray.student.channel_groups.find_channel_groups`.
        batches: The same images as each of the networks gets them, `[B, C, H, W]` twice.
        merge: Adds a float64 vector up over all ranks, so that all ranks get the same orders. It is called
            as often on each rank, also on a rank without batches: once per value.

    Raises:
        InputError: The networks have different architectures.
    """
    sums = _measure(reference, other, groups, batches)
    orders, before, after = dict[int, Tensor](), list[Tensor](), list[Tensor]()
    for index in list(sums):
        correlations = torch.stack([own.correlation(merge) for own in sums.pop(index)]).cpu()
        orders[index] = order = _best_order(correlations)
        before.append(correlations.diagonal(dim1=1, dim2=2).nanmean(0))
        after.append(correlations[:, torch.arange(len(order)), order].nanmean(0))
    means = [float(torch.cat(found).nanmean()) if found else 1.0 for found in (before, after)]
    return Alignment(permute_channels(other.state_dict(), groups, orders), orders, *means)


def _measure(
    reference: nn.Module,
    other: nn.Module,
    groups: ChannelGroups,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> dict[int, list["_CrossSums"]]:
    """Return the sums over all batches, for every value of each group that can be matched."""
    graph, device = _trace_same(reference, other, groups), next(reference.parameters()).device
    sums, by_node = dict[int, list[_CrossSums]](), dict[str, list[_CrossSums]]()
    for index, group in enumerate(groups.groups):
        for place in _measured_places(group, groups):
            own = _CrossSums(group.width, place, device)
            sums.setdefault(index, []).append(own)
            by_node.setdefault(place.name, []).append(own)
    with eval_mode(reference), eval_mode(other):
        for images in batches:
            # Both networks run node by node, and values are added before the next node is computed: that one
            # may overwrite them, and to keep the values of all nodes would need much memory.
            first = _run(fx.Interpreter(reference, graph=groups.graph), images[0])
            second = _run(fx.Interpreter(other, graph=graph), images[1])
            for (name, x), (_, y) in zip(first, second, strict=True):
                for own in by_node.get(name, ()):
                    own.add(x, y)
    return sums


def _best_order(correlations: Tensor) -> Tensor:
    """Return `[C]`, the other network's channel for each of the reference's, from `[values, C, C]`."""
    total = correlations.nan_to_num().sum(0)
    return torch.from_numpy(linear_sum_assignment(total.numpy(), maximize=True)[1])


def _trace_same(reference: nn.Module, other: nn.Module, groups: ChannelGroups) -> fx.Graph:
    """Trace a network, and check that it has the groups of the reference."""
    graph, _ = trace_network(other)
    expected, found = reference.state_dict(), other.state_dict()
    places = [place for group in groups.groups if not group.fixed for place in group.weights]
    differing = [
        place.name
        for place in places
        if place.name not in found
        or found[place.name].shape[place.axis] != expected[place.name].shape[place.axis]
    ]
    nodes = [[(node.name, node.op) for node in own.nodes] for own in (groups.graph, graph)]
    if differing or nodes[0] != nodes[1]:
        where = f"their {differing[0]}" if differing else "their computation"
        raise InputError(
            f"student.start: average needs networks of one architecture, but {where} differs; start from one "
            "of the teachers"
        )
    return graph


def _measured_places(group: ChannelGroup, groups: ChannelGroups) -> list[Place]:
    """Return the values that a group is matched by."""
    # Inside of two networks' attention heads, features have different bases, so that they do not correlate.
    if group.fixed or group.width == 1 or "attention" in group.operations:
        return []
    values = [place for place in group.values if place.axis > 0 and place.name in groups.rules]
    return [place for place in values if groups.rules[place.name] not in _COPIES]


def _run(network: fx.Interpreter, images: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the name and the result of each node."""
    network.args_iter = iter((images,))
    for node in network.graph.nodes:
        result = network.env[node] = network.run_node(node)
        yield node.name, result
        for used in network.user_to_last_uses.get(node, ()):
            del network.env[used]


class _CrossSums:
    """Sums over images and positions from which the correlations of two networks' channels follow.

    Args:
        width: C.
        place: Where the channels are in the values that are added.
        device: Device of the sums.
    """

    def __init__(self, width: int, place: Place, device: torch.device) -> None:
        self.place = place
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.sums = torch.zeros(4, width, dtype=torch.float64, device=device)
        self.count = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add the values of both networks for one batch."""
        width = len(self.products)
        x, y = _to_rows(first, self.place, width), _to_rows(second, self.place, width)
        self.products += x.T @ y
        self.sums += torch.stack([x.sum(0), y.sum(0), x.square().sum(0), y.square().sum(0)])
        self.count += len(x)

    def correlation(self, merge: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `[C, C]`, the reference's channels by the other's; NaN for a channel that never changes."""
        width = len(self.products)
        flat = torch.cat([self.count, self.sums.flatten(), self.products.flatten()])
        count, sums, products = merge(flat).split([1, 4 * width, width * width])
        count = count.clamp_min(1)  # a rank alone may have no images
        x, y, xx, yy = sums.view(4, width) / count
        # Below a share of the second moment, a variance is rounding error.
        variances = [
            torch.where(square - mean.square() > 1e-12 * square, square - mean.square(), torch.nan)
            for mean, square in ((x, xx), (y, yy))
        ]
        covariance = products.view(width, width) / count - x[:, None] * y
        correlation: Tensor = covariance / (variances[0][:, None] * variances[1]).sqrt()
        return correlation


def _to_rows(value: Tensor, place: Place, width: int) -> Tensor:
    """Return `[n, C]` in float64: a row per image and position, at most MAX_POSITIONS of an image."""
    own: Tensor = value.narrow(place.axis, place.offset, width * place.repeat)
    channels_last = own.movedim(place.axis, -1).unflatten(-1, (width, place.repeat)).transpose(-1, -2)
    by_image: Tensor = channels_last.flatten(1, -2)  # [B, P, C]
    step = -(-by_image.shape[1] // MAX_POSITIONS)
    return by_image[:, ::step].flatten(0, 1).to(torch.float64)
