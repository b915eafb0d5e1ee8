"""The adapter, which the paper calls feature adaptation module (FAM), and a layer that replaces it.

After learning, an adapter is folded: multiplied into the weights of the layer before it (see
:mod:`ka_ray.student.fold`). Where that is impossible, an ordinary layer of the student takes its place.

Shapes: B images, C channels of a code, *space height and width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ka_ray.numerics.channelwise import apply_channelwise


class Adapter(nn.Module):
    """A 1x1 conv from C to C channels that is initialised as the identity (Shen et al., AAAI 2019).

    It maps a code to a basis in which the activation and pooling of the next stage lose little.

    Args:
        channels: Number of channels of the code, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(channels))
            self.linear.bias.zero_()

    def forward(self, code: Tensor) -> Tensor:
        """Map a code `[B, C, *space]` to the adapted code of the same shape."""
        return apply_channelwise(self.linear, code)


def build_identity_layer(shape: Sequence[int], channels_last: bool = False) -> nn.Conv2d | nn.Linear:
    """Build a layer, initialised as the identity, for the end of a stage into which no adapter can be folded.

    Args:
        shape: Shape of one image's features at the end of the stage, ``(C, *space)``: maps get a 1x1 conv,
            vectors a linear layer.
        channels_last: Whether the stage's output has its channels last, as tokens have. Then it gets a linear
            layer.
    """
    channels = shape[0]
    linear = channels_last or len(shape) == 1
    layer = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels).view_as(layer.weight))
        layer.bias.zero_()  # type: ignore[union-attr]  # both are built with a bias
    return layer
