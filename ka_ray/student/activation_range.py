"""Find the range of values that the activation behind a value passes on."""

import torch
from torch import fx, nn
from torch.nn import functional

from ka_ray.numerics.rectified_regression import Clamp
from ka_ray.student.graph_nodes import get_module, passes_on, value_users

_RELUS = (torch.relu, functional.relu, "relu", "relu_")
_RELU6 = (functional.relu6,)


def find_clamp(network: nn.Module, node: fx.Node) -> Clamp | None:
    """Return the range that all users of a value clamp it to; None if one of them does something else.

    Args:
        network: The network.
        node: Node of the value.
    """
    users, found = value_users(node), set[Clamp | None]()
    while users:
        user = users.pop()
        module = get_module(network, user)
        if passes_on(network, user):
            users += value_users(user)
        elif isinstance(module, nn.ReLU6) or user.target in _RELU6:
            found.add(Clamp(0.0, 6.0))
        elif isinstance(module, nn.ReLU) or user.target in _RELUS:
            found.add(Clamp(0.0))
        else:
            return None
    return found.pop() if len(found) == 1 else None
