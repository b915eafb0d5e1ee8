"""Compute a network's values node by node for all images, and keep those that later nodes need.

Shapes: B images of a batch.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ka_ray.student.graph_nodes import is_image

_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def compute_node(network: nn.Module, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Compute the value of a node, without overwriting any other value.

    Args:
        network: The network that the node's graph belongs to, or another one of the same architecture.
        node: Any node but the image.
        values: Values of the nodes that it uses.
    """
    if node.op == "placeholder":
        return node.args[0]  # an argument that is fixed to its default
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda used: values[used])
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(network)
    if node.op == "call_module":
        return _call_module(network.get_submodule(str(node.target)), args, kwargs)
    if kwargs.get("inplace"):
        kwargs = {**kwargs, "inplace": False}
    if node.op == "call_method":
        name = str(node.target)
        in_place = name.endswith("_") and not name.endswith("__")
        return getattr(args[0], name.rstrip("_") if in_place else name)(*args[1:], **kwargs)
    assert callable(node.target)
    return _OUT_OF_PLACE.get(node.target, node.target)(*args, **kwargs)


def _call_module(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # A module that is one step of the graph may hold an in-place activation that overwrites its input.
    if any(getattr(part, "inplace", False) for part in module.modules()):
        args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
    return module(*args, **kwargs)


def last_users(graph: fx.Graph, computed_at: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Return which values nothing needs any more once a node is computed.

    Args:
        graph: The graph.
        computed_at: Node -> the later node with which it is computed, for nodes that are deferred.

    Returns:
        Node -> the values that it is the last to use.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    at = {node: computed_at.get(node, node) for node in graph.nodes}
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        users = [at[node], *(at[user] for user in node.users)]
        last.setdefault(max(users, key=position.__getitem__), []).append(node)
    return last


@dataclass(frozen=True)
class ValueSizes:
    """Sizes of the values of a network for one image.

    Attributes:
        shapes: Node -> shape of its value, if that is a tensor.
        live_bytes: Node -> the largest number of bytes that values take at the same time, when it or a later
            node is computed.
    """

    shapes: dict[fx.Node, torch.Size]
    live_bytes: dict[fx.Node, int]


@torch.no_grad()
def measure_values(
    network: nn.Module, graph: fx.Graph, computed_at: Mapping[fx.Node, fx.Node], image: Tensor
) -> ValueSizes:
    """Compute a network on one image, and measure its values.

    Args:
        network: The network.
        graph: Its graph.
        computed_at: See :func:`last_users`.
        image: Input of the network, `[1, C, H, W]`.
    """
    dead_after, values = last_users(graph, computed_at), dict[fx.Node, Any]()
    shapes, live = dict[fx.Node, torch.Size](), dict[fx.Node, int]()
    for node in graph.nodes:
        if node.op == "output":
            break
        values[node] = image if is_image(node) else compute_node(network, node, values)
        if isinstance(values[node], Tensor):
            shapes[node] = values[node].shape
        # Weights are shared by all images.
        live[node] = sum(_bytes(value) for used, value in values.items() if used.op != "get_attr")
        for dead in dead_after.get(node, ()):
            values.pop(dead, None)
    largest = 0
    for node in reversed(list(live)):
        largest = live[node] = max(largest, live[node])
    return ValueSizes(shapes, live)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0


class Lockstep:
    """Values of several networks of one architecture for all batches, computed node after node.

    Args:
        networks: The networks; the last one is the student, unless only teachers are run.
        graph: The graph of all of them.
        computed_at: Node -> the later node with which the student's value is computed.
        has_student: Whether the last network is the student.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        graph: fx.Graph,
        computed_at: Mapping[fx.Node, fx.Node],
        has_student: bool,
    ) -> None:
        self.networks, self._graph, self._computed_at = networks, graph, computed_at
        self._student = networks[-1] if has_student else None
        self._values: list[list[dict[fx.Node, Any]]] = []
        self.num_images = 0
        self._dead_after = last_users(graph, computed_at)
        self._position = {node: i for i, node in enumerate(graph.nodes)}

    def add(self, inputs: Sequence[Tensor], until: fx.Node) -> None:
        """Add a batch, and compute all that the other batches have of it.

        Args:
            inputs: The input of each network, `[B, C, H, W]`.
            until: The node that is computed next.
        """
        batch: list[dict[fx.Node, Any]] = [{} for _ in inputs]
        for node in self._graph.nodes:
            if node is until:
                break
            solved_at = self._computed_at.get(node, node)
            for network, values, pixels in zip(self.networks, batch, inputs, strict=True):
                if is_image(node):
                    values[node] = pixels
                # The layers of a sum that comes later are not solved yet.
                elif network is not self._student or self._position[solved_at] < self._position[until]:
                    values[node] = compute_node(network, node, values)
            _forget(batch, self._dead_after.get(node, ()))
        self._values.append(batch)
        self.num_images += len(inputs[0])

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._values)

    def compute(self, node: fx.Node, networks: slice) -> None:
        """Compute a node for some of the networks, for all batches."""
        for batch in self._values:
            for network, values in list(zip(self.networks, batch, strict=True))[networks]:
                values[node] = compute_node(network, node, values)

    def forget_after(self, node: fx.Node) -> None:
        """Drop all values that nothing needs once a node is computed."""
        for batch in self._values:
            _forget(batch, self._dead_after.get(node, ()))

    def value(self, node: fx.Node, batch: int, network: int = -1) -> Tensor:
        """Return a value of one network for one batch."""
        value: Tensor = self._values[batch][network][node]
        return value

    def values(self, node: fx.Node, batch: int, networks: slice) -> list[Tensor]:
        """Return the values of some networks for one batch."""
        return [values[node] for values in self._values[batch][networks]]


def _forget(batch: Sequence[dict[fx.Node, Any]], nodes: Iterable[fx.Node]) -> None:
    for values in batch:
        for node in nodes:
            values.pop(node, None)
