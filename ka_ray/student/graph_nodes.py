"""What single nodes of a network's graph do."""

import operator

import torch
from torch import fx, nn

from ka_ray.student.trace import drop_probability_attr

ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
"""Targets of the nodes that add two values."""


def is_image(node: fx.Node) -> bool:
    """Return whether a node is the image, and not an argument of the network that is fixed to its default."""
    return node.op == "placeholder" and not node.args


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


def keeps_order(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node passes its input on in eval mode, or moves no axis but that of the channels.

    Positions keep their order: a map `[B, C, H, W]` may become `[B, H, W, C]`, and the other way round.
    """
    if passes_on(network, node):
        return True
    module, dims = get_module(network, node), tuple(node.args[1:])
    if type(module).__name__ == "Permute":  # torchvision's
        dims = tuple(module.dims)  # type: ignore[union-attr, arg-type]
    elif node.target not in ("permute", torch.permute):
        return False
    flat = dims[0] if len(dims) == 1 else dims
    order = [int(axis) for axis in flat if isinstance(axis, int)]  # type: ignore[union-attr]
    others = ([axis for axis in order[1:] if axis != moved] for moved in order)
    return order[:1] == [0] and any(rest == sorted(rest) for rest in others)


def find_weight_name(network: nn.Module, node: fx.Node) -> str | None:
    """Return the name of the parameter that a node reads, reshapes or repeats; None if it is a value."""
    while node.target in ("reshape", "view", "expand", "unsqueeze") and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.op != "get_attr":
        return None
    name = str(node.target)
    return name if isinstance(operator.attrgetter(name)(network), nn.Parameter) else None
