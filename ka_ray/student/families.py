"""Network families: chains of conv and linear layers that a student can be built from with any widths.

Such a student needs no batch norm: its layers have a bias, and a batch norm between a layer and its
activation could always be folded into the layer. It has no dropout, because its targets are the teachers'
soft scores.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES

CONNECTORS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "maxpool2": lambda: nn.MaxPool2d(2),
    "maxpool3": lambda: nn.MaxPool2d(3, stride=2),
    "avgpool1": lambda: nn.AdaptiveAvgPool2d(1),
    "avgpool6": lambda: nn.AdaptiveAvgPool2d(6),
    "avgpool7": lambda: nn.AdaptiveAvgPool2d(7),
    "flatten": nn.Flatten,
}
"""Builders of the modules without weights that connect two layers."""


@dataclass(frozen=True)
class LayerSpec:
    """One conv or linear layer of a family, and the modules that connect it to the layer before.

    Attributes:
        name: Name of the layer, also of the tap at its output.
        layer_type: conv or linear.
        width: Number of output channels in the original network; the width of a code at this tap replaces it.
        connectors: Keys of :data:`CONNECTORS`, applied in this order to the output of the layer before.
        module_path: Path of the module of the original network whose output is this tap: the batch norm
            after the layer if there is one, else the layer.
        conv_args: Kernel size, stride and padding of a conv; a linear layer ignores them.
        positions: Number of values per channel that are flattened in front of a linear layer.
    """

    name: str
    layer_type: Literal["conv", "linear"]
    width: int
    connectors: tuple[str, ...]
    module_path: str
    conv_args: tuple[int, int, int] = (3, 1, 1)
    positions: int = 1

    def build(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        """Build the connecting modules and the layer.

        Args:
            channels_in: Number of output channels of the layer before.
            channels_out: Number of output channels of this layer.
        """
        modules = [CONNECTORS[name]() for name in self.connectors]
        if self.layer_type == "linear":
            return [*modules, nn.Linear(channels_in * self.positions, channels_out)]
        size, stride, padding = self.conv_args
        return [*modules, nn.Conv2d(channels_in, channels_out, size, stride, padding)]


Family = tuple[LayerSpec, ...]
"""The layers in order. The last one returns the scores; the number of classes replaces its width of 0."""


def plain(widths: Sequence[int] = (32, 64, 128, 256)) -> Family:
    """Return the layers of :func:`ka_ray.teachers.plain.plain_conv_net`, 3x3 convs of the given widths."""
    layers = [
        LayerSpec(f"conv{i}", "conv", width, ("relu", "maxpool2") if i > 1 else (), f"norm{i}")
        for i, width in enumerate(widths, start=1)
    ]
    return (*layers, LayerSpec("scores", "linear", 0, ("relu", "avgpool1", "flatten"), "head"))


def alexnet() -> Family:
    """Return the layers of torchvision's AlexNet (Krizhevsky, 2014)."""
    pool = ("relu", "maxpool3")
    return (
        LayerSpec("conv1", "conv", 64, (), "features.0", (11, 4, 2)),
        LayerSpec("conv2", "conv", 192, pool, "features.3", (5, 1, 2)),
        LayerSpec("conv3", "conv", 384, pool, "features.6"),
        LayerSpec("conv4", "conv", 256, ("relu",), "features.8"),
        LayerSpec("conv5", "conv", 256, ("relu",), "features.10"),
        LayerSpec("fc6", "linear", 4096, (*pool, "avgpool6", "flatten"), "classifier.1", positions=36),
        LayerSpec("fc7", "linear", 4096, ("relu",), "classifier.4"),
        LayerSpec("scores", "linear", 0, ("relu",), "classifier.6"),
    )


def vgg_bn(convs_per_block: Sequence[int]) -> Family:
    """Return the layers of torchvision's VGG with batch norm (Simonyan and Zisserman, 2015).

    ``convs_per_block`` is the number of convs of each of its five blocks, (1, 1, 2, 2, 2) for VGG-11.
    """
    layers: list[LayerSpec] = []
    path = 0  # index of the conv in torchvision's `features`: conv, norm and ReLU, then a pooling per block
    for block, num_convs in enumerate(convs_per_block, start=1):
        for i in range(1, num_convs + 1):
            connectors: tuple[str, ...] = ("relu",) if layers else ()
            connectors = ("relu", "maxpool2") if layers and i == 1 else connectors
            width = min(64 * 2 ** (block - 1), 512)
            layers.append(LayerSpec(f"conv{block}_{i}", "conv", width, connectors, f"features.{path + 1}"))
            path += 3
        path += 1
    flat = ("relu", "maxpool2", "avgpool7", "flatten")
    return (
        *layers,
        LayerSpec("fc6", "linear", 4096, flat, "classifier.0", positions=49),
        LayerSpec("fc7", "linear", 4096, ("relu",), "classifier.3"),
        LayerSpec("scores", "linear", 0, ("relu",), "classifier.6"),
    )


def build_family_stages(
    family: Family, paths: Mapping[str, str], widths: Mapping[str, int], num_classes: int
) -> nn.ModuleDict:
    """Build the stages of a family's student: one leads to each tap, and the last one to the scores.

    Args:
        family: The layers.
        paths: tap -> name of its layer.
        widths: tap -> number of output channels of its layer; layers without a tap keep the family's width.
        num_classes: Number of scores.

    Returns:
        tap -> stage, in the order of the layers.
    """
    taps = {layer: tap for tap, layer in paths.items()}
    stages, channels, modules = nn.ModuleDict(), 3, list[nn.Module]()  # an image has 3 channels
    for layer in family:
        tap = SCORES if layer is family[-1] else taps.get(layer.name)
        # Layers without a tap are part of the next tap's stage.
        width = num_classes if tap == SCORES else layer.width if tap is None else widths[tap]
        modules += layer.build(channels, width)
        channels = width
        if tap is not None:
            stages[tap] = nn.Sequential(*modules)
            modules = []
    return stages


def split_stage(tap: str, stage: nn.Module) -> tuple[nn.Module, nn.Conv2d | nn.Linear]:
    """Split a stage of a family's student into the modules before its only layer, and the layer.

    Args:
        tap: The tap that the stage leads to, for the error message.
        stage: The stage; it ends in the layer.

    Raises:
        InputError: The stage has more than one layer.
    """
    assert isinstance(stage, nn.Sequential)
    layers = [module for module in stage if isinstance(module, nn.Conv2d | nn.Linear)]
    if len(layers) > 1:
        raise InputError(
            f"taps: name every layer of the student; {len(layers)} layers lead to {tap}, but the solver "
            "needs one layer per tap"
        )
    return stage[:-1], layers[0]


def get_channelwise_prefix(stage: nn.Module) -> nn.Module:
    """Return the modules at the start of a stage that treat every channel by itself: activation, pooling.

    Example:
        >>> get_channelwise_prefix(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)))
        Sequential(
          (0): ReLU()
          (1): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
        )
    """
    if not isinstance(stage, nn.Sequential):  # a stage cut by torch.fx has no list of modules in order
        return nn.Identity()
    channelwise = (nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    return nn.Sequential(*itertools.takewhile(lambda module: isinstance(module, channelwise), stage))


FAMILIES: dict[str, Callable[..., Family]] = {
    "plain": plain,
    "alexnet": alexnet,
    "vgg11_bn": lambda: vgg_bn((1, 1, 2, 2, 2)),
    "vgg13_bn": lambda: vgg_bn((2, 2, 2, 2, 2)),
    "vgg16_bn": lambda: vgg_bn((2, 2, 3, 3, 3)),
    "vgg19_bn": lambda: vgg_bn((2, 2, 4, 4, 4)),
}
"""Value of ``student.network`` in the config -> builder of the family."""


def find_family(network: str, arguments: dict[str, Any]) -> Family:
    """Look up a family and return its layers.

    Args:
        network: A key of :data:`FAMILIES`.
        arguments: Arguments of the family's builder, ``widths`` of ``plain``, for example.

    Raises:
        InputError: There is no such family, or it has no such arguments.
    """
    if network not in FAMILIES:
        raise InputError(
            f"student.network: {network!r} is not a family; the families are {', '.join(FAMILIES)}"
        )
    try:
        return FAMILIES[network](**arguments)
    except TypeError as error:  # an unknown argument, or a value of a wrong type
        raise InputError(f"student.arguments for {network!r}: {error}") from None
