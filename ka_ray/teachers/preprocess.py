"""Turn decoded images into the input of a network.

Shapes: B images, C channels (1 or 3), H and W in pixels.
"""

import torch
from torch import Tensor, nn

from ka_ray.config import Preprocessing
from ka_ray.numerics.memory_format import to_preferred_memory_format


class Preprocess(nn.Module):
    """Scale uint8 pixels, subtract the mean and divide by the standard deviation.

    Images are resized and cropped before, see :class:`ka_ray.images.views.View`.

    Args:
        config: Scale, mean, standard deviation and order of channels that the network was trained with.

    Attributes:
        mean: Mean per channel in units of the scaled pixels, ``[1, C, 1, 1]``.
        std: Standard deviation per channel in units of the scaled pixels, ``[1, C, 1, 1]``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Preprocessing) -> None:
        super().__init__()
        self._rescale, self._bgr = config.rescale, config.channel_order == "bgr"
        # Not persistent, so that the state dict of network and preprocessing has only the network's keys.
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)

    @property
    def rgb_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel as shares of white, in the order red, green, blue."""
        white = 255 * self._rescale
        mean, std = ((values.flatten() / white).tolist() for values in (self.mean, self.std))
        return (mean[::-1], std[::-1]) if self._bgr else (mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """Map pixels in 0 ... 255 to the network's input.

        Args:
            images: Views of the images, ``[B, C, H, W]``, uint8.

        Returns:
            Network input, ``[B, C, H, W]``, in the dtype of ``mean`` and in the memory format that is fastest
            on the device.
        """
        pixels = (images.flip(1) if self._bgr else images).to(self.mean.dtype)
        # Divided, as torchvision does, where the factor is 1/255: multiplying would round differently.
        scaled = pixels / 255 if self._rescale == 1 / 255 else pixels * self._rescale
        return to_preferred_memory_format((scaled - self.mean) / self.std)
