"""Build the untrained network that a config names."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ka_ray.errors import InputError
from ka_ray.teachers.factories import find_factory
from ka_ray.teachers.plain import plain_conv_net

NETWORKS: dict[str, Callable[..., nn.Module]] = {"plain": plain_conv_net}
"""Networks of this package: name in the config -> function that builds the network."""


def build_network(network: str, arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Build a network with random weights.

    Args:
        network: A key of :data:`NETWORKS`, a torchvision classifier such as ``vgg11_bn``, or
            ``package.module:factory``.
        arguments: Keyword arguments of the function that builds the network. A factory gets only these; the
            other networks get ``num_classes`` in addition.
        num_classes: Length of the score vector.

    Returns:
        The network, on the CPU and in training mode.

    Raises:
        InputError: The name is unknown, the factory cannot be imported, or it raises an error.
    """
    if ":" in network:
        return _call(network, find_factory(network), dict(arguments))
    if network in NETWORKS:
        return _call(network, NETWORKS[network], {"num_classes": num_classes, **arguments})
    # Importing torchvision takes seconds, because it imports torch's compiler. So it is imported only here.
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        near = difflib.get_close_matches(network, [*NETWORKS, *known], n=4, cutoff=0.4)
        raise InputError(
            f"network {network!r} is unknown. Similar names: {', '.join(near) or 'none'}. Accepted are "
            f"{', '.join(NETWORKS)}, any torchvision classifier, or package.module:factory"
        )
    builder = torchvision.models.get_model_builder(network)
    return _call(network, builder, {"weights": None, "num_classes": num_classes, **arguments})


def _call(network: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module:
    try:
        built = factory(**arguments)
    except Exception as error:  # any error of the constructor means that these arguments do not work
        raise InputError(f"network {network!r} cannot be built with arguments {arguments}: {error}") from None
    if not isinstance(built, nn.Module):
        raise InputError(
            f"network {network!r} must return a torch.nn.Module, but it returned {type(built).__name__}"
        )
    return built
