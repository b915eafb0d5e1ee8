"""What a network costs: parameters, multiply-accumulates, bytes."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from ka_ray.reports.sections import Size


def measure_size(network: torch.nn.Module, image: torch.Tensor) -> Size:
    """Count what a network costs.

    Args:
        network: In the mode in which it is used.
        image: Its input for one image, with the batch axis.

    Returns:
        Parameters; multiply-accumulates of the forward pass, in convs and matrix products; and bytes of
        parameters and buffers as they are stored in memory.

    Example:
        >>> measure_size(torch.nn.Linear(4, 2), torch.zeros(1, 4)).macs
        8
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    parameters = list(network.parameters())
    return Size(
        parameters=sum(p.numel() for p in parameters),
        macs=counter.get_total_flops() // 2,
        bytes=sum(tensor.nbytes for tensor in (*parameters, *network.buffers())),
    )
