"""A plain conv-BN-ReLU-pool classifier for small images."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def plain_conv_net(num_classes: int, widths: Sequence[int] = (32, 64, 128, 256)) -> nn.Sequential:
    """Build a sequence of blocks (3x3 conv, batch norm, ReLU, 2x2 max pool) with a linear layer at the end.

    Because of the global average pooling before the linear layer, the network is not bound to one image size.

    Args:
        num_classes: Length of the score vector.
        widths: Number of output channels of each block's conv. Each block except the last one halves height
            and width.

    Returns:
        A network from images ``[B, 3, H, W]`` to scores ``[B, num_classes]``. Block ``i``, counted from 1,
        consists of the children ``conv{i}``, ``norm{i}``, ``act{i}`` and, except for the last block,
        ``pool{i}``. The linear layer is ``head``.

    Example:
        >>> [name for name, _ in plain_conv_net(5, widths=[8]).named_children()]
        ['conv1', 'norm1', 'act1', 'pool', 'flatten', 'head']
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels_in = 3
    for i, channels_out in enumerate(widths, start=1):
        # Without bias, because the batch norm behind the conv adds one.
        layers[f"conv{i}"] = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(channels_out)
        layers[f"act{i}"] = nn.ReLU()
        if i < len(widths):
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels_in = channels_out
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels_in, num_classes)
    return nn.Sequential(layers)
