"""Find the layers of a network that least squares can solve: their output is linear in their weights."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from ka_ray.student.batch_norms import Norm
from ka_ray.student.graph_nodes import find_weight_name, get_module, keeps_order, value_users
from ka_ray.student.linear_layers import ConvOrLinear, is_conv_same


@dataclass(frozen=True)
class SolvableLayer:
    """A conv or linear layer, with the batch norm and the layer scale after it if there are any.

    Attributes:
        path: Path of the layer's module.
        source: Node of the layer's input.
        output: Node of the layer's output, behind its batch norm and layer scale.
        norm_path: Path of the batch norm; None if there is none.
        scale: Name of the weight that scales the channels behind the layer; None if there is none.
        between: Nodes from the layer's own to that before the output, in the order of the graph.
    """

    path: str
    source: fx.Node
    output: fx.Node
    norm_path: str | None
    scale: str | None
    between: tuple[fx.Node, ...]

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


def find_layers(network: nn.Module, graph: fx.Graph) -> Iterator[SolvableLayer]:
    """Yield all conv and linear layers of a network, in the order of its graph.

    Args:
        network: The network.
        graph: Its graph.
    """
    for node in graph.nodes:
        if not is_solvable(get_module(network, node)):
            continue
        chain, users = [node], value_users(node)
        norm_path = find_norm_path(network, users[0]) if len(users) == 1 else None
        if norm_path is not None:
            chain.append(users[0])
        further, scale = _find_scale(network, chain[-1])
        chain += further
        yield SolvableLayer(
            str(node.target), node.all_input_nodes[0], chain[-1], norm_path, scale, tuple(chain[:-1])
        )


def _find_scale(network: nn.Module, node: fx.Node) -> tuple[list[fx.Node], str | None]:
    """Find a layer scale behind a value that is used for nothing else (Touvron et al., 2103.17239).

    Returns:
        The nodes behind the value up to the scaled one, and the name of the weight; nothing if there is none.
    """
    chain = list[fx.Node]()
    while len(users := value_users(node)) == 1:
        node = users[0]
        chain.append(node)
        if (scale := find_scale_name(network, node)) is not None:
            return chain, scale
        if not keeps_order(network, node):
            break
    return [], None


def find_scale_name(network: nn.Module, node: fx.Node) -> str | None:
    """Return the name of the weight that a node multiplies a value with; None if it does something else."""
    module = get_module(network, node)
    if module is not None:
        is_scale = type(module).__name__ in ("LayerScale", "LayerScale2d")  # timm's
        return f"{node.target}.gamma" if is_scale else None
    if node.target not in (operator.mul, operator.imul, torch.mul, "mul", "mul_"):
        return None
    names = [find_weight_name(network, used) for used in node.all_input_nodes]
    found = [name for name in names if name is not None]
    return found[0] if len(names) == 2 and len(found) == 1 else None


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
