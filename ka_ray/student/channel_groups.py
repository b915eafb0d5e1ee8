"""Find the groups of channels that must be permuted, or chosen, together.

Channels belong together when their values are added, multiplied or normalised together, or when they pass
through a depthwise convolution. They are found by own rules on the fx graph, not by Torch-Pruning's
dependency graph (2301.12900), because that one knows which layers to prune together, but not which values lie
between them nor what acts on those, and it would be a second tracer, with other nodes than ours.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ka_ray.errors import InputError
from ka_ray.student.channel_graph import ChannelGraph
from ka_ray.student.channel_labels import Label
from ka_ray.student.channel_rules import Value
from ka_ray.student.trace import eval_mode

CHECK_TOLERANCE = 1e-5
"""A network with permuted channels may compute scores that differ by this share of the largest score.

Rounding in float64 is far below; but some networks compute a part in float32 whatever they get.
"""

_NON_LINEAR = frozenset({"activation", "max_pool", "product", "norm", "attention"})


@dataclass(frozen=True)
class Place:
    """Where the channels of a group are.

    Channel ``c`` has the entries from ``offset + c * repeat`` to ``offset + (c + 1) * repeat`` of an axis.

    Attributes:
        name: A weight or buffer of the state dict, or the name of a node of the graph.
        axis: The axis of its tensor, counted from 0.
        offset: First entry of the group on the axis; not 0 behind a concatenation.
        repeat: Number of adjacent entries of each channel; H * W where a map was flattened.
    """

    name: str
    axis: int
    offset: int
    repeat: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are permuted together.

    Attributes:
        width: Number of channels.
        weights: All places in the state dict.
        values: All places in values that depend on the image, in the order of computation.
        fixed: Whether the order is given: by the image's channels, by the classes, or by an operation whose
            effect on the order is not known.
        operations: What acts on values of the group channel by channel, apart from additions and batch norms:
            "activation", "max_pool", "product" (of two values), "norm" (layer or group norm), "depthwise",
            "attention" (each channel is a head).
    """

    width: int
    weights: tuple[Place, ...]
    values: tuple[Place, ...]
    fixed: bool
    operations: frozenset[str]

    @property
    def is_linear(self) -> bool:
        """Whether nothing non-linear acts directly on a value, as in the residual stream of MobileNetV2."""
        return not self.operations & _NON_LINEAR


@dataclass(frozen=True)
class ChannelGroups:
    """All groups of a network.

    Attributes:
        groups: The groups, in the order of computation.
        graph: The network's graph, which the nodes' names refer to.
        of_node: Name of a node -> the groups on its axes, as indices of ``groups``. Most nodes have one; a
            concatenation has several.
        rules: Name of a node -> the name of its operation, such as "conv2d" or "relu", if that is known.
    """

    groups: tuple[ChannelGroup, ...]
    graph: fx.Graph
    of_node: Mapping[str, tuple[int, ...]]
    rules: Mapping[str, str]


def find_channel_groups(network: nn.Module, images: Tensor) -> ChannelGroups:
    """Find the groups of channels of a network.

    Where it is not known what an operation does to the order of channels, the groups around it are fixed.
    The result is checked: permuted at random, the network has to compute the same.

    Args:
        network: Maps images to scores.
        images: `[B, C, H, W]`, two or more images of the size that the network is used with. Only their shape
            matters.

    Raises:
        InputError: torch.fx cannot trace the network, or the permuted network does not compute the same.
    """
    with eval_mode(network), torch.no_grad():
        graph = ChannelGraph(network)
        graph.run(images)
    groups = _collect(graph, network)
    check_channel_groups(network, groups, images)
    return groups


def _collect(graph: ChannelGraph, network: nn.Module) -> ChannelGroups:
    """Collect the places of each set of channels that both weights and values have."""
    weights, values = dict[int, list[Place]](), dict[int, list[Place]]()
    for key, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in graph.weights:
            for channels, place in _find_places(graph, key, graph.weights[id(tensor)][1].axes):
                weights.setdefault(channels, []).append(place)
    of_node = dict[str, tuple[int, ...]]()
    for node, value in graph.values.items():
        if isinstance(value, Value) and not value.is_weight:
            found = [p for p in _find_places(graph, node.name, value.axes) if p[0] in weights]
            for channels, place in found:
                values.setdefault(channels, []).append(place)
            of_node[node.name] = tuple(channels for channels, _ in found)
    numbers = {channels: number for number, channels in enumerate(values)}
    groups = tuple(
        ChannelGroup(
            graph.labels.width(channels),
            tuple(weights[channels]),
            tuple(values[channels]),
            graph.labels.is_fixed(channels),
            graph.labels.operations(channels),
        )
        for channels in numbers
    )
    of_node = {name: tuple(numbers[channels] for channels in found) for name, found in of_node.items()}
    rules = {node.name: name for node, name in graph.rules.items()}
    return ChannelGroups(groups, graph.graph, of_node, rules)


def _find_places(graph: ChannelGraph, name: str, axes: tuple[Label, ...]) -> Iterator[tuple[int, Place]]:
    """Yield each set of channels on the axes of a tensor, and its place."""
    for axis, label in enumerate(axes):
        offset = 0
        for segment in graph.labels.resolve(label):
            yield segment.channels, Place(name, axis, offset, segment.repeat)
            offset += segment.size


def permute_channels(
    state: Mapping[str, Tensor], groups: ChannelGroups, orders: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Permute channels in a state dict; in eval mode, the network computes the same as before.

    Args:
        state: Weights and buffers; they stay unchanged.
        groups: The groups.
        orders: Index of a group -> `[width]`, the old channel that each new one is. Groups that are left out
            keep their order.

    Returns:
        The state dict; tensors that do not change are the same as before.

    Raises:
        ValueError: A group is fixed.
    """
    permuted = dict(state)
    for index, order in orders.items():
        group = groups.groups[index]
        if group.fixed:
            raise ValueError(f"the order of group {index} is fixed")
        for place in group.weights:
            tensor = permuted[place.name]
            entries = torch.arange(tensor.shape[place.axis], device=tensor.device)
            size = group.width * place.repeat
            own = entries[place.offset : place.offset + size].view(group.width, place.repeat)
            entries[place.offset : place.offset + size] = own[order.to(tensor.device)].flatten()
            permuted[place.name] = tensor.index_select(place.axis, entries)
    return permuted


def check_channel_groups(network: nn.Module, groups: ChannelGroups, images: Tensor) -> None:
    """Check that a network computes the same when all groups that are not fixed are permuted at random.

    Args:
        network: The network; it stays unchanged.
        groups: Its groups.
        images: `[B, C, H, W]`, of which only the shape matters.

    Raises:
        InputError: It computes something else.
    """
    generator = torch.Generator().manual_seed(0)
    orders = {
        index: torch.randperm(group.width, generator=generator)
        for index, group in enumerate(groups.groups)
        if not group.fixed
    }
    copy = deepcopy(network).double().eval()  # in float64, so that a difference is no rounding error
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images.device)
    with torch.no_grad():
        expected = copy(noise)
        if not isinstance(expected, Tensor):
            raise InputError("student.start: to align channels, the network must return one tensor of scores")
        permuted = permute_channels(copy.state_dict(), groups, orders)
        difference = (functional_call(copy, permuted, noise, tie_weights=False) - expected).abs().max()
    if not difference <= CHECK_TOLERANCE * expected.abs().max():
        raise InputError(
            "student.start: the order of the network's channels matters to it in a way that ka_ray does not "
            "understand; choose a start that does not align channels, such as teacher"
        )
