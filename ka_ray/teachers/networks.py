"""Build the untrained network that a config names."""

import difflib
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any

from torch import nn

from ka_ray.errors import InputError
from ka_ray.teachers.factories import find_factory
from ka_ray.teachers.plain import plain_conv_net
from ka_ray.teachers.transformers_networks import build_transformers_network

TIMM = "timm/"
"""Prefix of the name of a timm model."""

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "plain": plain_conv_net,
    "transformers": build_transformers_network,
}
"""Networks of this package: name in the config -> function that builds the network."""

STUDENT_NETWORK = "ka_ray.student.merged:build_merged_network"
"""The factory of a student that is itself a teacher. This part of the package must not import that one."""

INPUT_TRANSFORMERS = ("googlenet", "inception_v3")
"""torchvision's networks that change their input if they are made with pretrained weights."""

FORBIDDEN_ARGUMENTS = (
    "model_name",
    "checkpoint_path",
    "cache_dir",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)
"""Arguments of timm's builder that name another network or load files; `network` and `checkpoint` do."""


def build_network(network: str, arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Build a network with random weights.

    Args:
        network: A key of :data:`NETWORKS`, a torchvision classifier such as ``vgg11_bn``, ``timm/`` and the
            name of a timm model, or ``package.module:factory``.
        arguments: Keyword arguments of the function that builds the network. A factory gets only these; the
            other networks get ``num_classes`` in addition.
        num_classes: Length of the score vector.

    Returns:
        The network, on the CPU and in training mode.

    Raises:
        InputError: The name is unknown, the factory cannot be imported, or it raises an error.
    """
    with_classes = {"num_classes": num_classes, **arguments}
    if network == STUDENT_NETWORK:
        return _call(network, find_factory(network), with_classes)
    if ":" in network:
        return _call(network, find_factory(network), dict(arguments))
    if network in NETWORKS:
        return _call(network, NETWORKS[network], with_classes)
    if network.startswith(TIMM):
        return _build_timm_network(network, with_classes)
    # Importing torchvision takes seconds, because it imports torch's compiler. So it is imported only here.
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        near = difflib.get_close_matches(network, [*NETWORKS, *known], n=4, cutoff=0.4)
        raise InputError(
            f"network {network!r} is unknown. Similar names: {', '.join(near) or 'none'}. Accepted are "
            f"{', '.join(NETWORKS)}, any torchvision classifier, timm/MODEL, or package.module:factory"
        )
    builder = torchvision.models.get_model_builder(network)
    return _call(network, builder, {"weights": None, **with_classes})


def _build_timm_network(network: str, arguments: dict[str, Any]) -> nn.Module:
    timm = import_timm(f"network {network!r}")
    check_timm_name(network)
    forbidden = sorted(arguments.keys() & set(FORBIDDEN_ARGUMENTS))
    if forbidden:
        raise InputError(
            f"network {network!r}: the argument {forbidden[0]!r} is not allowed; set `network`, and `from` "
            "or `checkpoint` for weights"
        )
    return _call(network, timm.create_model, {"model_name": network.removeprefix(TIMM), **arguments})


def check_timm_name(network: str) -> None:
    """Check that timm has a model of a name.

    Args:
        network: ``timm/`` and the name of the model, with or without that of published weights.

    Raises:
        InputError: timm is not installed, or has no such model; the message has similar names.
    """
    timm, name = import_timm(f"network {network!r}"), network.removeprefix(TIMM).partition(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
        raise InputError(f"network {network!r}: timm has no such model. Similar: {', '.join(near) or 'none'}")


def check_transform_input(network: str, arguments: Mapping[str, Any], key: str) -> None:
    """Ask for an argument that torchvision sets by itself when it loads pretrained weights.

    With it, the network changes its input from one normalisation to another. A checkpoint does not tell
    whether its network did so, and a wrong guess costs half of the accuracy without a word.

    Args:
        network: The network of a checkpoint.
        arguments: Its keyword arguments.
        key: Where it stands in the config, such as ``teachers.dogs``.

    Raises:
        InputError: The argument is missing.
    """
    if network in INPUT_TRANSFORMERS and "transform_input" not in arguments:
        raise InputError(
            f"{key}.arguments.transform_input: is missing. torchvision's {network} changes its input if it "
            "was made with pretrained weights; set true if its training began with such weights, and false "
            "if it began with random ones"
        )


def import_timm(what: str) -> Any:
    """Import timm, which is not a dependency.

    Args:
        what: What needs it, for the error message.

    Raises:
        InputError: It is not installed.
    """
    try:
        import timm
    except ImportError:
        raise InputError(f"{what} needs timm; install ka_ray[timm]") from None
    return timm


def _call(network: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module:
    try:
        built = factory(**arguments)
    except Exception as error:  # any error of the constructor means that these arguments do not work
        raise InputError(
            f"network {network!r} cannot be built with arguments {shorten(repr(arguments), 300)}: "
            f"{shorten(str(error), 600)}"
        ) from None
    if not isinstance(built, nn.Module):
        raise InputError(
            f"network {network!r} must return a torch.nn.Module, but it returned {type(built).__name__}"
        )
    return built
