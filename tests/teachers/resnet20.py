"""ResNet-20 for CIFAR-10 with the names of a published repository, as a user's own file has it."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A basic block whose shortcut subsamples and pads channels with zeros."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - channels_in) // 2

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        shortcut = features[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        out = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR; its constructor needs no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        for i, (channels_in, channels, stride) in enumerate(widths, 1):
            blocks = [Block(channels_in, channels, stride), *(Block(channels, channels, 1) for _ in range(2))]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out))).mean((2, 3))
        scores: torch.Tensor = self.linear(out)
        return scores


def resnet20() -> nn.Module:
    return ResNet20()
