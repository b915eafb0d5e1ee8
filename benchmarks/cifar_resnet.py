"""The residual network for CIFAR-10 images of He et al., "Deep Residual Learning" (CVPR 2016), section 4.2.

In a config: ``network: cifar_resnet:resnet20`` with ``arguments: {num_classes: 5}``.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
"""Channels of the three groups of blocks."""


class BasicBlock(nn.Module):
    """Two 3x3 convs with batch norms, added to a shortcut.

    Where the block halves the map or widens it, the shortcut is a 1x1 conv with batch norm (He's
    option B). His option A pads with zeros, which fixes the order of the channels.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first conv.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's output, ``[B, channels, height / stride, width / stride]``."""
        hidden = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(hidden)) + self.shortcut(features))


class ResNet(nn.Module):
    """A residual network of three groups of blocks on maps of full, half and quarter size.

    Args:
        num_classes: Length of the score vector.
        blocks: Blocks per group.
        widths: Channels per group.
    """

    def __init__(self, num_classes: int, blocks: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels, groups = widths[0], []
        for index, width in enumerate(widths):
            first = BasicBlock(channels, width, stride=1 if index == 0 else 2)
            groups.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1))))
            channels = width
        self.layer1, self.layer2, self.layer3 = groups
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images ``[B, 3, H, W]`` to scores ``[B, num_classes]``."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(features.mean(dim=(2, 3)))


def resnet20(num_classes: int) -> ResNet:
    """Build the network with 20 layers, 0.27 million weights.

    Args:
        num_classes: Length of the score vector.
    """
    return ResNet(num_classes, blocks=3)
