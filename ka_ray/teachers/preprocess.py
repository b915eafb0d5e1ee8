"""Turn decoded images into the input of a network.

Shapes: B images, H and W in pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.config import Preprocessing
from ka_ray.numerics.memory_format import to_preferred_memory_format


class Preprocess(nn.Module):
    """Scale uint8 pixels to [0, 1], resize them, subtract the mean and divide by the standard deviation.

    Args:
        config: Size, mean and standard deviation that the network was trained with.

    Attributes:
        size: Height and width in pixels to resize to; None: keep the size of the images.
        mean: Mean per colour channel in units of the scaled pixels, ``[1, 3, 1, 1]``.
        std: Standard deviation per colour channel in units of the scaled pixels, ``[1, 3, 1, 1]``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Preprocessing) -> None:
        super().__init__()
        self.size = config.size
        # Not persistent, so that the state dict of network and preprocessing has only the network's keys.
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels in 0 ... 255 to the network's input.

        Args:
            images: Decoded images, ``[B, 3, H, W]``, uint8.

        Returns:
            Network input, ``[B, 3, H, W]`` or ``[B, 3, size, size]``, in the dtype of ``mean`` and in the
            memory format that is fastest on the device.
        """
        scaled = images.to(self.mean.dtype) / 255
        if self.size is not None and scaled.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            scaled = functional.interpolate(
                scaled, size, mode="bilinear", antialias=True, align_corners=False
            )
        return to_preferred_memory_format((scaled - self.mean) / self.std)
