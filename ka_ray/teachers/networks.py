"""From a network's name in the config to an untrained module."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ka_ray.errors import InputError
from ka_ray.teachers.factories import find_factory
from ka_ray.teachers.plain import plain_conv_net

NETWORKS: dict[str, Callable[..., nn.Module]] = {"plain": plain_conv_net}


def build_network(network: str, arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Build a network with random weights.

    Args:
        network: ``plain``, a torchvision classifier (``vgg11_bn``), or ``package.module:factory``.
        arguments: Keyword arguments. A factory gets these alone; the others get ``num_classes`` besides.
        num_classes: Length of the score vector.

    Raises:
        InputError: The name is unknown, the factory cannot be imported, or it refuses the arguments.
    """
    if ":" in network:
        return _call(network, find_factory(network), dict(arguments))
    if network in NETWORKS:
        return _call(network, NETWORKS[network], {"num_classes": num_classes, **arguments})
    import torchvision  # seconds to import (it pulls torch's compiler in), so only where it is needed

    known = torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        near = difflib.get_close_matches(network, [*NETWORKS, *known], n=4, cutoff=0.4)
        raise InputError(
            f"network {network!r} is unknown; near: {', '.join(near) or 'nothing'}. Accepted: "
            f"{', '.join(NETWORKS)}, a torchvision classifier, or package.module:factory"
        )
    builder = torchvision.models.get_model_builder(network)
    return _call(network, builder, {"weights": None, "num_classes": num_classes, **arguments})


def _call(network: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module:
    try:
        built = factory(**arguments)
    except Exception as error:  # whatever a constructor raises, it refuses these arguments
        raise InputError(f"network {network!r} with arguments {arguments}: {error}") from None
    if not isinstance(built, nn.Module):
        raise InputError(f"network {network!r} must give a torch.nn.Module, it gave {type(built).__name__}")
    return built
