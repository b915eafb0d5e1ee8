"""Measure the size of a network and the cost of its forward pass."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from ka_ray.reports.sections import NetworkSize


def measure_size(network: torch.nn.Module, image: torch.Tensor) -> NetworkSize:
    """Count parameters, multiply-accumulates and bytes of a network.

    Args:
        network: The network, already in evaluation mode if it is used that way.
        image: Input of one image, with the batch axis: ``[1, 3, H, W]`` for a network of images.

    Returns:
        The number of parameters, the multiply-accumulates of one forward pass (those of convolutions and
        matrix products), and the bytes that parameters and buffers take in memory.

    Example:
        >>> measure_size(torch.nn.Linear(4, 2), torch.zeros(1, 4)).macs
        8
    """
    # In evaluation mode, torch's attention is one fused operation, which the counter does not know.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    parameters = list(network.parameters())
    return NetworkSize(
        parameters=sum(p.numel() for p in parameters),
        # torch counts a multiply-accumulate as two operations.
        macs=counter.get_total_flops() // 2,
        bytes=sum(tensor.nbytes for tensor in (*parameters, *network.buffers())),
    )
