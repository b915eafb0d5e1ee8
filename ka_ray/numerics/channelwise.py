"""Apply a linear layer to the channels of every position, as a 1x1 conv does, for maps and vectors."""

from torch import Tensor, nn

from ka_ray.numerics.memory_format import to_preferred_memory_format


def apply_channelwise(linear: nn.Linear, features: Tensor) -> Tensor:
    """Apply a linear layer to the channels of every position.

    Args:
        linear: Linear layer from C to D channels.
        features: `[B, C, *space]` maps or `[B, C]` vectors.

    Returns:
        `[B, D, *space]` in the memory format of
        :func:`ka_ray.numerics.memory_format.to_preferred_memory_format`.

    Example:
        >>> import torch
        >>> apply_channelwise(nn.Linear(3, 5), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 5, 4, 4])
    """
    return to_preferred_memory_format(linear(features.movedim(1, -1)).movedim(-1, 1))
