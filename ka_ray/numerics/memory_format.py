"""How maps lie in memory.

Shapes: B images, C channels, H and W of a map.
"""

import torch
from torch import Tensor


def to_preferred_memory_format(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Lay features out for the device that they are on.

    On a CPU the channels of a position stand side by side (``torch.channels_last``): layers take the layout
    over, and pooling is about ten times as fast in it. Elsewhere the positions of a channel do (contiguous).

    Args:
        features: `[B, C, H, W]` or `[B, C]`.
        dtype: To convert to on the way; None: the type stays.

    Returns:
        The same values.
    """
    dtype = features.dtype if dtype is None else dtype
    if features.dim() == 4 and features.device.type == "cpu":
        return features.to(dtype, memory_format=torch.channels_last)
    return features.to(dtype).contiguous()
