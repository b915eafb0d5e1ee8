"""The teachers side by side and the student, as networks of one architecture with one graph.

Shapes: B images of a batch, P sampled positions, C channels of a value, S stacked channels of all teachers.
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from ka_ray.config.student import STUDENT
from ka_ray.errors import InputError
from ka_ray.student.added_weights import find_added_weights
from ka_ray.student.channel_codes import ChannelCode
from ka_ray.student.channel_groups import ChannelGroup, find_channel_groups
from ka_ray.student.graph_nodes import is_image
from ka_ray.student.layer_norms import find_layer_norms, move_into_readers, reset_affine
from ka_ray.student.lockstep import Lockstep, ValueSizes, measure_values
from ka_ray.student.solvable_layers import SolvableLayer
from ka_ray.student.solvable_sums import find_solvable_sums
from ka_ray.student.stacked_widths import find_teacher_widths


class StackedNetworks:
    """The graph of the student and of its teachers, and what of it can be solved.

    Args:
        student: The student's network, in eval mode. Its layer scales are set to 1 and its layer norms to the
            weight 1 and the bias 0, because the layers beside them make up for that.
        teachers: Name of a teacher -> its network, in eval mode.
        images: Input of the student's network, `[B, C, H, W]`, two or more.

    Attributes:
        networks: The teachers' networks, then the student's. Layer norms of the teachers' copies have their
            weight and bias in the layers that read them.
        student: The student's network.
        graph: The graph of all of them.
        groups: The groups of channels that are chosen together.
        teacher_widths: Number of channels that each teacher has in each group.
        stacked: Number of channels that all teachers together have in each group.
        sums: Node -> the sum of layers that is solved there, in the order of the graph.
        norms: Node -> the layer norm there.
        added_weights: Weights that are added to values; see :meth:`code_added_weights`.
        output: Node of the scores.

    Raises:
        InputError: The networks cannot be traced, are of different architectures, or have weights that least
            squares cannot solve.
    """

    def __init__(self, student: nn.Module, teachers: Mapping[str, nn.Module], images: Tensor) -> None:
        self.student = student
        found = find_channel_groups(student, images)
        self.graph, self.groups = found.graph, found.groups
        self.output: fx.Node = next(node for node in self.graph.nodes if node.op == "output").args[0]
        self.sums = find_solvable_sums(student, self.graph)
        modules = {layer.between[0] if layer.between else layer.output: layer for layer in self.layers}
        self.norms = find_layer_norms(student, found, modules)
        self.added_weights = find_added_weights(student, found)
        # Node -> the node at which it is solved, and not before.
        self.computed_at = {node: total.root for total in self.sums.values() for node in total.inner}
        self._groups_of = found.of_node
        # Positions can have a group of their own, which is fixed: that of a position embedding.
        by_order = sorted(self.groups, key=lambda group: not group.fixed)
        self._axes = {place.name: place.axis for group in by_order for place in group.values}
        # Teachers may have other widths than the student, and than each other.
        self.teacher_widths = find_teacher_widths(student, found, teachers, *self._check(), images)
        self.stacked = tuple(map(sum, self.teacher_widths))
        self.networks = [*(self._move_norms(teacher) for teacher in teachers.values()), student]
        names = [*teachers, STUDENT]
        sizes = [
            self._measure(name, network, images[:1])
            for name, network in zip(names, self.networks, strict=True)
        ]
        self._shapes = sizes[-1].shapes
        self._live_bytes = {
            node: sum(size.live_bytes[node] for size in sizes) for node in sizes[-1].live_bytes
        }
        for layer in self.layers:
            if layer.scale is not None:
                student.get_parameter(layer.scale).fill_(1.0)
        for use in self.norms.values():
            reset_affine(use.norm(student))

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
        node: fx.Node = next(node for node in self.graph.nodes if not is_image(node))
        return node

    def start(self) -> Lockstep:
        """Return the values of all networks, without any image yet."""
        return Lockstep(self.networks, self.graph, self.computed_at, has_student=True)

    def start_teachers(self) -> Lockstep:
        """Return the values of the teachers, without any image yet."""
        # Inputs of a layer have to be there when its output, behind the batch norm, is known.
        until = {layer.between[0]: layer.output for layer in self.layers if layer.between}
        return Lockstep(self.networks[:-1], self.graph, until, has_student=False)

    def max_images(self, node: fx.Node, memory_gib: float) -> int:
        """Return how many images' values fit into the memory when this and all later nodes are computed."""
        return int(memory_gib * 1024**3 / max(1, self._live_bytes[node]))

    def group_index(self, node: fx.Node) -> int:
        """Return the index of the group that the channels of a value are in."""
        found = set(self._groups_of.get(node.name, ()))
        found = {index for index in found if not self.groups[index].fixed} or found
        if len(found) != 1:
            raise InputError(
                f"student.start exact: the value {node.name!r} of the student's network has channels of "
                f"{len(found)} groups; concatenated channels are not supported"
            )
        return found.pop()

    def group(self, node: fx.Node) -> ChannelGroup:
        """Return the group that the channels of a value are in."""
        return self.groups[self.group_index(node)]

    def axis(self, node: fx.Node) -> int:
        """Return the axis of a value's channels."""
        return self._axes[node.name]

    def encode(self, node: fx.Node, code: ChannelCode, stacked: Tensor) -> Tensor:
        """Return the code of the stacked teachers' values at a node.

        Args:
            node: The node.
            code: Code of its group.
            stacked: `[..., S]`, the teachers' values, or something of each of them.

        Returns:
            `[..., C]`, in the order that the student's values at the node have.
        """
        group = self.group(node)
        places = [place for place in group.values if place.name == node.name]
        if code.kept is None or [(place.offset, place.repeat) for place in places] == [(0, 1)]:
            return code.encode(stacked)
        widths = self.teacher_widths[self.group_index(node)]
        owners = [(teacher, channel) for teacher, width in enumerate(widths) for channel in range(width)]
        size = stacked.shape[-1] // sum(widths)  # entries of one channel, over all places
        entries = [
            sum(widths[:teacher]) * size
            + place.offset // group.width * widths[teacher]
            + channel * place.repeat
            + value
            for place in places
            for teacher, channel in (owners[kept] for kept in code.kept)
            for value in range(place.repeat)
        ]
        return stacked[..., entries]

    def num_positions(self, node: fx.Node) -> int:
        """Return the number of positions of a value: 1 for a vector."""
        shape = self._shapes[node]
        return math.prod(shape[1:]) // shape[self.axis(node)]

    def is_tied(self, layer: SolvableLayer) -> bool:
        """Return whether a layer maps each channel to itself: a depthwise conv."""
        return getattr(layer.layer(self.student), "groups", 1) > 1

    def code_added_weights(self, codes: Mapping[int, ChannelCode]) -> None:
        """Set the student's class tokens and position embeddings to the code of the stacked teachers'."""
        for added in self.added_weights:
            parts = [network.get_parameter(added.name) for network in self.networks[:-1]]
            stacked = torch.cat([part.movedim(added.axis, -1) for part in parts], dim=-1)
            code = codes[added.group].encode(stacked).movedim(-1, added.axis)
            self.student.get_parameter(added.name).copy_(code)

    def _move_norms(self, teacher: nn.Module) -> nn.Module:
        """Return a teacher whose layer norms have their weights in the layers that read them."""
        moved = [use for use in self.norms.values() if use.readers is not None]
        teacher = copy.deepcopy(teacher) if moved else teacher
        for use in moved:
            move_into_readers(use, teacher)
        return teacher

    def _measure(self, name: str, network: nn.Module, image: Tensor) -> ValueSizes:
        """Measure the values of a network, computed along the student's graph."""
        try:
            return measure_values(network, self.graph, self.computed_at, image)
        except RuntimeError as error:  # the graph has numbers in it, such as that of the heads
            raise InputError(
                f"student.start exact: teacher {name} has another architecture than the student: its values "
                f"cannot be computed in the same steps ({error})"
            ) from None

    def _check(self) -> tuple[set[str], set[str]]:
        """Refuse weights that least squares cannot solve; return the paths of others, and of the head's."""
        solved, head, weights = set[str](), set[str](), set[str]()
        for root, total in self.sums.items():
            for layer in total.layers:
                for path in (layer.path, layer.norm_path):
                    if path is not None:
                        (head if root is self.output else solved).add(path)
                weights.add(layer.scale or layer.path)
                if layer.norm_path is None and layer.layer(self.student).bias is None:
                    raise InputError(
                        f"student.start exact: the layer {layer.path!r} of the student's network has neither "
                        "a bias nor a batch norm behind it; that is not supported"
                    )
        solved |= {use.path for use in self.norms.values()}
        weights |= {added.name for added in self.added_weights}
        for name, _ in self.student.named_parameters():
            if name.rpartition(".")[0] not in solved | head and name not in weights:
                raise InputError(
                    f"student.start exact: least squares cannot solve the weight {name!r} of the student's "
                    "network; supported are conv and linear layers, batch norms and layer scales behind "
                    "them, layer norms, class tokens and position embeddings"
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
