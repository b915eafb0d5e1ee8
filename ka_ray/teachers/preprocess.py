"""What a network does to decoded images before its first layer.

Shapes: B images, H and W in pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.config import Preprocessing
from ka_ray.numerics.memory_format import to_preferred_memory_format


class Preprocess(nn.Module):
    """Scale uint8 pixels to [0, 1], resize, subtract the mean, divide by the standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Preprocessing) -> None:
        super().__init__()
        self.size = config.size
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels `[B, 3, H, W]` in 0 ... 255 to the network's input, in the device's layout."""
        scaled = images.to(self.mean.dtype) / 255
        if self.size is not None and scaled.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            scaled = functional.interpolate(
                scaled, size, mode="bilinear", antialias=True, align_corners=False
            )
        return to_preferred_memory_format((scaled - self.mean) / self.std)
