"""Network families that a student can be built from: chains of conv and linear layers.

A student has no batch norm (its layers are learned with a bias, and a batch norm in front of an activation
can always be folded into the layer before it) and no dropout (its targets are the teachers' soft scores).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES

PARTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "maxpool2": lambda: nn.MaxPool2d(2),
    "maxpool3": lambda: nn.MaxPool2d(3, stride=2),
    "avgpool1": lambda: nn.AdaptiveAvgPool2d(1),
    "avgpool6": lambda: nn.AdaptiveAvgPool2d(6),
    "avgpool7": lambda: nn.AdaptiveAvgPool2d(7),
    "flatten": nn.Flatten,
}


@dataclass(frozen=True)
class Layer:
    """One conv or linear layer of a family, and what stands between it and the layer before.

    Attributes:
        name: The layer's name, which is also the name of the tap at its output.
        kind: conv or linear.
        width: Output channels in the original network; a code at this tap replaces it.
        before: Names of :data:`PARTS` applied to the output of the layer before.
        teacher_path: The module of the original network whose output is this tap (behind the batch norm).
        kernel: (size, stride, padding) of a conv.
        positions: Values a channel has when it is flattened in front of a linear layer.
    """

    name: str
    kind: Literal["conv", "linear"]
    width: int
    before: tuple[str, ...]
    teacher_path: str
    kernel: tuple[int, int, int] = (3, 1, 1)
    positions: int = 1

    def build(self, channels_in: int, channels_out: int) -> list[nn.Module]:
        """Build the parts before the layer, and the layer."""
        parts = [PARTS[name]() for name in self.before]
        if self.kind == "linear":
            return [*parts, nn.Linear(channels_in * self.positions, channels_out)]
        size, stride, padding = self.kernel
        return [*parts, nn.Conv2d(channels_in, channels_out, size, stride, padding)]


Family = tuple[Layer, ...]
"""The layers in order; the last one gives the scores."""


def plain(widths: Sequence[int] = (32, 64, 128, 256)) -> Family:
    """Chain 3x3 convs as :func:`ka_ray.teachers.plain.plain_conv_net` does."""
    layers = [
        Layer(f"conv{i}", "conv", width, ("relu", "maxpool2") if i > 1 else (), f"norm{i}")
        for i, width in enumerate(widths, start=1)
    ]
    return (*layers, Layer("scores", "linear", 0, ("relu", "avgpool1", "flatten"), "head"))


def alexnet() -> Family:
    """Chain the layers of torchvision's AlexNet (Krizhevsky, 2014)."""
    pool = ("relu", "maxpool3")
    return (
        Layer("conv1", "conv", 64, (), "features.0", (11, 4, 2)),
        Layer("conv2", "conv", 192, pool, "features.3", (5, 1, 2)),
        Layer("conv3", "conv", 384, pool, "features.6"),
        Layer("conv4", "conv", 256, ("relu",), "features.8"),
        Layer("conv5", "conv", 256, ("relu",), "features.10"),
        Layer("fc6", "linear", 4096, (*pool, "avgpool6", "flatten"), "classifier.1", positions=36),
        Layer("fc7", "linear", 4096, ("relu",), "classifier.4"),
        Layer("scores", "linear", 0, ("relu",), "classifier.6"),
    )


def vgg_bn(convs_per_block: Sequence[int]) -> Family:
    """Chain the layers of torchvision's VGG with batch norm (Simonyan and Zisserman, 2015)."""
    layers: list[Layer] = []
    path = 0
    for block, num_convs in enumerate(convs_per_block, start=1):
        for i in range(1, num_convs + 1):
            before: tuple[str, ...] = ("relu",) if layers else ()
            before = ("relu", "maxpool2") if layers and i == 1 else before
            width = min(64 * 2 ** (block - 1), 512)
            layers.append(Layer(f"conv{block}_{i}", "conv", width, before, f"features.{path + 1}"))
            path += 3
        path += 1
    flat = ("relu", "maxpool2", "avgpool7", "flatten")
    return (
        *layers,
        Layer("fc6", "linear", 4096, flat, "classifier.0", positions=49),
        Layer("fc7", "linear", 4096, ("relu",), "classifier.3"),
        Layer("scores", "linear", 0, ("relu",), "classifier.6"),
    )


def chain_stages(
    family: Family, paths: Mapping[str, str], widths: Mapping[str, int], num_classes: int
) -> nn.ModuleDict:
    """Build a family's stages: tap -> the layers that lead to it; the last one leads to the scores.

    Args:
        family: The layers.
        paths: tap -> name of its layer.
        widths: tap -> output channels of its layer; layers that are no tap keep their own width.
        num_classes: K.
    """
    taps = {layer: tap for tap, layer in paths.items()}
    stages, channels, parts = nn.ModuleDict(), 3, list[nn.Module]()
    for layer in family:
        tap = SCORES if layer is family[-1] else taps.get(layer.name)
        width = num_classes if tap == SCORES else layer.width if tap is None else widths[tap]
        parts += layer.build(channels, width)
        channels = width
        if tap is not None:
            stages[tap] = nn.Sequential(*parts)
            parts = []
    return stages


def activation_of(stage: nn.Module) -> nn.Module:
    """Give what a stage does to every channel by itself before its first layer.

    Example:
        >>> activation_of(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)))
        Sequential(
          (0): ReLU()
          (1): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
        )
    """
    if not isinstance(stage, nn.Sequential):
        return nn.Identity()
    channelwise = (nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    return nn.Sequential(*itertools.takewhile(lambda part: isinstance(part, channelwise), stage))


FAMILIES: dict[str, Callable[..., Family]] = {
    "plain": plain,
    "alexnet": alexnet,
    "vgg11_bn": lambda: vgg_bn((1, 1, 2, 2, 2)),
    "vgg13_bn": lambda: vgg_bn((2, 2, 2, 2, 2)),
    "vgg16_bn": lambda: vgg_bn((2, 2, 3, 3, 3)),
    "vgg19_bn": lambda: vgg_bn((2, 2, 4, 4, 4)),
}


def find_family(network: str, arguments: dict[str, Any]) -> Family:
    """Look a family up.

    Raises:
        InputError: The network has no family, or the family refuses the arguments.
    """
    if network not in FAMILIES:
        raise InputError(f"student.network: no family {network!r}; there are {', '.join(FAMILIES)}")
    try:
        return FAMILIES[network](**arguments)
    except TypeError as error:
        raise InputError(f"student.arguments for {network!r}: {error}") from None
