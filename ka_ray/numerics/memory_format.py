"""Choose the memory format of feature maps and networks for the device that they are on.

Shapes: B images, C channels, H and W height and width of a map.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def to_preferred_memory_format(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Convert features to the memory format that their device works on fastest.

    For maps that is ``torch.channels_last``: layers keep the format in their outputs. On a CPU, pooling is
    about ten times as fast in it; on a GPU, convs are (`benchmarks/gpu.py`). Vectors have no such format.

    Args:
        features: `[B, C, H, W]` or `[B, C]`.
        dtype: Type to convert to at the same time; None keeps the type.

    Returns:
        The same values; the same tensor if nothing had to change.
    """
    dtype = features.dtype if dtype is None else dtype
    if features.dim() == 4:
        return features.to(dtype, memory_format=torch.channels_last)
    return features.to(dtype).contiguous()


def move_network(network: Module, device: torch.device) -> Module:
    """Move a network to the device that it will run on, in place.

    On a GPU, the kernels of convs get the format of :func:`to_preferred_memory_format`. Without it, each call
    would convert them again. On a CPU they stay as they are.

    Args:
        network: Network, or anything that holds networks.
        device: The device.

    Returns:
        The network.
    """
    network.to(device)
    return network.to(memory_format=torch.channels_last) if device.type == "cuda" else network
