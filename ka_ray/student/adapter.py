"""FAM, the feature adaptation module, and the layer that takes its place where it cannot be folded.

Shapes: B images, C channels of a code, *space height and width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ka_ray.numerics.channelwise import apply_channelwise


class Adapter(nn.Module):
    """A 1x1 conv from C to C channels that starts as the identity (Shen et al., AAAI 2019).

    It turns a code into a basis in which the activation and pooling behind it lose little.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(channels))
            self.linear.bias.zero_()

    def forward(self, code: Tensor) -> Tensor:
        """Map `[B, C, *space]` to the same shape."""
        return apply_channelwise(self.linear, code)


def identity_layer(shape: Sequence[int]) -> nn.Conv2d | nn.Linear:
    """Build the layer that stays behind a stage into which no adapter can be folded; it starts as identity.

    Args:
        shape: Of one image's features there, ``(C, *space)``: a map gets a 1x1 conv, a vector a linear layer.
    """
    channels = shape[0]
    layer = nn.Linear(channels, channels) if len(shape) == 1 else nn.Conv2d(channels, channels, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels).view_as(layer.weight))
        layer.bias.zero_()  # type: ignore[union-attr]  # both are built with a bias
    return layer
