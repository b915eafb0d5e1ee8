"""Find the layers of a network that least squares can solve, and which of them are solved together.

The output of a layer that is only added to other values, as at the end of a residual block, has no target of
its own: only the sum has one. So the layers of a sum are solved together, towards the sum.
"""

from dataclasses import dataclass

from torch import fx, nn

from ka_ray.student.graph_nodes import ADDITIONS, find_weight_name, keeps_order, value_users
from ka_ray.student.solvable_layers import SolvableLayer, find_layers


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
    layers = {layer.output: layer for layer in find_layers(network, graph)}
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
            inner |= {node, *layers[node].between}
        elif _adds_values(network, node):
            inner.add(node)
            for argument in node.all_input_nodes:
                # A value that is used elsewhere, too, needs a target of its own.
                if len(value_users(argument)) == 1 and len(node.all_input_nodes) == 2:
                    queue.append(argument)
                else:
                    others += [argument] * node.args.count(argument)
        elif keeps_order(network, node) and len(value_users(node.all_input_nodes[0])) == 1:
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


def _adds_values(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node adds two values, and not a weight, such as a position embedding, to a value."""
    if node.target not in ADDITIONS or not all(isinstance(argument, fx.Node) for argument in node.args):
        return False
    return all(find_weight_name(network, used) is None for used in node.all_input_nodes)
