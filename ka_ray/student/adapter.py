"""FAM, the feature adaptation module, and how it disappears into the layer before it.

Shapes: B images, C channels of a code, *space height and width.
"""

import torch
from torch import Tensor, nn

from ka_ray.features.channelwise import apply_channelwise


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


@torch.no_grad()
def fold(adapter: Adapter, layer: nn.Conv2d | nn.Linear) -> None:
    """Fold an adapter into the layer before it, in place: ``W' = A W``, ``b' = A b + a``.

    Exact: the layer then gives what layer and adapter gave. Computed in float64, whatever the weights are.

    Raises:
        ValueError: The layer has no bias to take the adapter's.
    """
    if layer.bias is None:
        raise ValueError("an adapter folds into a layer with bias only")
    weight, bias = (t.to(torch.float64) for t in (adapter.linear.weight, adapter.linear.bias))
    flat = layer.weight.to(torch.float64).flatten(1)
    layer.weight.copy_((weight @ flat).view_as(layer.weight))
    layer.bias.copy_(weight @ layer.bias.to(torch.float64) + bias)
