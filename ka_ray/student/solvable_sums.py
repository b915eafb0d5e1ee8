"""Find the layers of a network that least squares can solve, and which of them are solved together.

The output of a layer that is only added to other values, as at the end of a residual block, has no target of
its own: only the sum has one. So the layers of a sum are solved together, towards the sum.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from ka_ray.student.batch_norms import Norm
from ka_ray.student.linear_layers import ConvOrLinear, is_conv_same
from ka_ray.student.trace import drop_probability_attr

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
"""Targets of the nodes that add two values."""


@dataclass(frozen=True)
class SolvableLayer:
    """A conv or linear layer, with the batch norm after it if there is one.

    Attributes:
        path: Path of the layer's module.
        source: Node of the layer's input.
        output: Node of the layer's output, behind its batch norm.
        norm_path: Path of the batch norm; None if there is none.
    """

    path: str
    source: fx.Node
    output: fx.Node
    norm_path: str | None

    def layer(self, network: nn.Module) -> ConvOrLinear:
        """Return the layer of a network of this architecture."""
        layer = network.get_submodule(self.path)
        assert isinstance(layer, ConvOrLinear)
        return layer

    def norm(self, network: nn.Module) -> Norm | None:
        """Return the batch norm after the layer, of a network of this architecture."""
        norm = None if self.norm_path is None else network.get_submodule(self.norm_path)
        assert norm is None or isinstance(norm, Norm)
        return norm


@dataclass(frozen=True)
class SolvableSum:
    """A value that is the sum of the outputs of layers, and of other values.

    Attributes:
        root: Node of the sum; the output of the only layer if nothing is added to it.
        layers: The layers, in the order of the graph.
        others: The other summands.
        inner: Nodes that are computed on the way to the root, which nothing else uses, in the order of the
            graph.
    """

    root: fx.Node
    layers: tuple[SolvableLayer, ...]
    others: tuple[fx.Node, ...]
    inner: tuple[fx.Node, ...]

    @property
    def in_order(self) -> tuple[fx.Node, ...]:
        """The nodes to compute once the layers are solved."""
        return (*self.inner, self.root)


def find_solvable_sums(network: nn.Module, graph: fx.Graph) -> dict[fx.Node, SolvableSum]:
    """Find all layers of a network that can be solved, as sums that have a target.

    Args:
        network: The network.
        graph: Its graph, see :func:`ka_ray.student.trace.trace_network`.

    Returns:
        Root -> sum, in the order of the graph.
    """
    layers = {layer.output: layer for layer in _find_layers(network, graph)}
    found, inside = list[SolvableSum](), set[fx.Node]()
    # From the end, so that the outermost addition of several comes first.
    for node in reversed(graph.nodes):
        if node in inside or not (node in layers or node.target in ADDITIONS):
            continue
        total = _find_summands(network, node, layers)
        if total.layers:
            found.append(total)
            inside.update(total.inner)
    return {total.root: total for total in reversed(found)}


def _find_summands(network: nn.Module, root: fx.Node, layers: dict[fx.Node, SolvableLayer]) -> SolvableSum:
    """Walk back from a sum through additions whose result nothing else uses."""
    own, others, inner, queue = list[SolvableLayer](), list[fx.Node](), set[fx.Node](), [root]
    while queue:
        node = queue.pop()
        if node in layers:
            own.append(layers[node])
            inner |= {node, *_between(layers[node])}
        elif node.target in ADDITIONS and all(isinstance(arg, fx.Node) for arg in node.args):
            inner.add(node)
            for argument in node.all_input_nodes:
                # A value that is used elsewhere, too, needs a target of its own.
                if len(value_users(argument)) == 1 and len(node.all_input_nodes) == 2:
                    queue.append(argument)
                else:
                    others += [argument] * node.args.count(argument)
        elif passes_on(network, node) and len(value_users(node.all_input_nodes[0])) == 1:
            inner.add(node)
            queue.append(node.all_input_nodes[0])
        else:
            others.append(node)
    order = {node: i for i, node in enumerate(root.graph.nodes)}
    # What uses only the shape of a value inside, such as a check, has to wait for it, too.
    for node in list(order)[: order[root]]:
        if inner.intersection(node.all_input_nodes):
            inner.add(node)
    own.sort(key=lambda layer: order[layer.output])
    inside = sorted(inner - {root}, key=order.__getitem__)
    return SolvableSum(root, tuple(own), tuple(others), tuple(inside))


def _between(layer: SolvableLayer) -> Iterator[fx.Node]:
    """Yield the node of the layer itself if a batch norm follows."""
    if layer.norm_path is not None:
        yield layer.output.all_input_nodes[0]


def _find_layers(network: nn.Module, graph: fx.Graph) -> Iterator[SolvableLayer]:
    for node in graph.nodes:
        if not is_solvable(get_module(network, node)):
            continue
        users = value_users(node)
        norm_path = find_norm_path(network, users[0]) if len(users) == 1 else None
        output = node if norm_path is None else users[0]
        yield SolvableLayer(str(node.target), node.all_input_nodes[0], output, norm_path)


def is_solvable(module: nn.Module | None) -> bool:
    """Return whether the output of a module is linear in its weights, and the module is of a known kind."""
    # Other subclasses may compute something else from the same weights. timm's `Linear` differs in its
    # dtypes only.
    plain = isinstance(module, nn.Conv2d | nn.Linear) and type(module).__name__ in ("Conv2d", "Linear")
    return plain or is_conv_same(module)


def find_norm_path(network: nn.Module, node: fx.Node) -> str | None:
    """Return the path of the batch norm that a node is the output of; None if it is something else.

    timm's batch norms contain an activation, so that torch.fx traces what is inside of them.
    """
    module = get_module(network, node)
    path = str(node.target) if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) else ""
    if node.target is functional.batch_norm:
        path = str(node.args[1].target).rpartition(".")[0] if isinstance(node.args[1], fx.Node) else ""
    norm = network.get_submodule(path) if path else None
    return path if isinstance(norm, Norm) and norm.affine and norm.running_mean is not None else None


def value_users(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that use the values of a node, and not only its shape."""
    return [user for user in node.users if user.target is not getattr and user.target not in ("size", "dim")]


def get_module(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls; None if it calls none."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def passes_on(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node passes its input on in eval mode."""
    module = get_module(network, node)
    return module is not None and (
        isinstance(module, nn.Identity) or drop_probability_attr(module) is not None
    )
