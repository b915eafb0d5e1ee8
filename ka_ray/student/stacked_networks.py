"""The teachers side by side and the student, as networks of one architecture with one graph.

Shapes: B images of a batch, P sampled positions, C channels of a value, S stacked channels of all teachers.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from ka_ray.errors import InputError
from ka_ray.student.channel_groups import ChannelGroup, find_channel_groups
from ka_ray.student.lockstep import Lockstep, measure_values
from ka_ray.student.solvable_sums import SolvableLayer, find_solvable_sums
from ka_ray.student.stacked_widths import count_stacked_channels


class StackedNetworks:
    """The graph of the student and of its teachers, and what of it can be solved.

    Args:
        student: The student's network, in eval mode.
        teachers: Name of a teacher -> its network, in eval mode.
        images: Input of the student's network, `[B, C, H, W]`, two or more.

    Attributes:
        networks: The teachers' networks, then the student's.
        student: The student's network.
        graph: The graph of all of them.
        groups: The groups of channels that are chosen together.
        stacked: Number of channels that all teachers together have in each group.
        sums: Node -> the sum of layers that is solved there, in the order of the graph.
        output: Node of the scores.

    Raises:
        InputError: The networks cannot be traced, are of different architectures, or have weights that least
            squares cannot solve.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module], images: Tensor) -> None:
        self.student, self.networks = student, [*teachers.values(), student]
        found = find_channel_groups(student, images)
        self.graph, self.groups = found.graph, found.groups
        self.output: fx.Node = next(node for node in self.graph.nodes if node.op == "output").args[0]
        self.sums = find_solvable_sums(student, self.graph)
        # Node -> the node at which it is solved, and not before.
        self.computed_at = {node: total.root for total in self.sums.values() for node in total.inner}
        self._groups_of = found.of_node
        self._axes = {place.name: place.axis for group in self.groups for place in group.values}
        # Teachers may have other widths than the student, and than each other.
        self.stacked = count_stacked_channels(student, found, teachers, *self._check(), images)
        sizes = [
            measure_values(network, self.graph, self.computed_at, images[:1]) for network in self.networks
        ]
        self._shapes = sizes[-1].shapes
        self._live_bytes = {
            node: sum(size.live_bytes[node] for size in sizes) for node in sizes[-1].live_bytes
        }

    @property
    def num_teachers(self) -> int:
        """Number of teachers."""
        return len(self.networks) - 1

    @property
    def layers(self) -> list[SolvableLayer]:
        """All layers that are solved, in the order of the graph."""
        return [layer for total in self.sums.values() for layer in total.layers]

    @property
    def first_node(self) -> fx.Node:
        """The first node that is computed from the image."""
        node: fx.Node = next(node for node in self.graph.nodes if node.op != "placeholder")
        return node

    def start(self) -> Lockstep:
        """Return the values of all networks, without any image yet."""
        return Lockstep(self.networks, self.graph, self.computed_at, has_student=True)

    def start_teachers(self) -> Lockstep:
        """Return the values of the teachers, without any image yet."""
        # Inputs of a layer have to be there when its output, behind the batch norm, is known.
        normed = [layer for layer in self.layers if layer.norm_path is not None]
        until = {layer.output.all_input_nodes[0]: layer.output for layer in normed}
        return Lockstep(self.networks[:-1], self.graph, until, has_student=False)

    def max_images(self, node: fx.Node, memory_gib: float) -> int:
        """Return how many images' values fit into the memory when this and all later nodes are computed."""
        return int(memory_gib * 1024**3 / max(1, self._live_bytes[node]))

    def group_index(self, node: fx.Node) -> int:
        """Return the index of the group that the channels of a value are in."""
        found = self._groups_of.get(node.name, ())
        if len(found) != 1:
            raise InputError(
                f"student.start exact: the value {node.name!r} of the student's network has channels of "
                f"{len(found)} groups; concatenated channels are not supported"
            )
        return found[0]

    def group(self, node: fx.Node) -> ChannelGroup:
        """Return the group that the channels of a value are in."""
        return self.groups[self.group_index(node)]

    def axis(self, node: fx.Node) -> int:
        """Return the axis of a value's channels."""
        return self._axes[node.name]

    def num_positions(self, node: fx.Node) -> int:
        """Return the number of positions of a value: 1 for a vector."""
        shape = self._shapes[node]
        return math.prod(shape[1:]) // shape[self.axis(node)]

    def is_tied(self, layer: SolvableLayer) -> bool:
        """Return whether a layer maps each channel to itself: a depthwise conv."""
        return getattr(layer.layer(self.student), "groups", 1) > 1

    def _check(self) -> tuple[set[str], set[str]]:
        """Refuse weights that least squares cannot solve; return the paths of others, and of the head's."""
        solved, head = set[str](), set[str]()
        for root, total in self.sums.items():
            for layer in total.layers:
                for path in (layer.path, layer.norm_path):
                    if path is not None:
                        (head if root is self.output else solved).add(path)
        for name, _ in self.student.named_parameters():
            if name.rpartition(".")[0] not in solved | head:
                raise InputError(
                    f"student.start exact: least squares cannot solve the weight {name!r} of the student's "
                    "network; supported are conv and linear layers, and batch norms behind them"
                )
        if not head:
            raise InputError("student.start exact: the scores are not the output of a conv or linear layer")
        return solved, head


def sample_values(value: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Return the channels of a value at some positions.

    Args:
        value: `[B, ...]`, with the channels on one of its axes.
        axis: That axis.
        positions: `[B, P]`, numbered as the other axes are, the last one fastest.

    Returns:
        `[B, P, C]`.
    """
    flat = value.movedim(axis, -1)
    flat = flat[:, None] if flat.dim() == 2 else flat.flatten(1, -2)
    return flat[torch.arange(len(flat), device=flat.device)[:, None], positions]
