"""Measure the size of a network, and the cost and the speed of its forward pass."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from ka_ray.reports.networks import SPEED_BATCH, NetworkSize, NetworkSpeed

MIN_CALLS, MIN_SECONDS, LONG_SECONDS = 5, 0.05, 0.2
"""A forward pass is timed so often and so long; one that is long alone is timed once."""

MAX_BATCH_SECONDS = 3.0
"""Batches are smaller where one of the usual size would take longer, as for large networks on a CPU."""


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


def measure_speed(score: Callable[[torch.Tensor], object], pixels: torch.Tensor) -> NetworkSpeed:
    """Time how fast a network scores images.

    Args:
        score: Scores a batch of uint8 images, preprocessing included.
        pixels: One image as uint8, `[1, 3, H, W]`.
    """
    with torch.inference_mode():
        single = _time(score, pixels)
        size = max(1, min(SPEED_BATCH, int(MAX_BATCH_SECONDS / single)))
        batch = _time(score, pixels.repeat(size, 1, 1, 1))
    return NetworkSpeed(latency_ms=1000 * single, images_per_s=size / batch)


def _time(score: Callable[[torch.Tensor], object], pixels: torch.Tensor) -> float:
    """Return the median seconds of a call; the first one counts only if it is long."""
    seconds = list[float]()
    while len(seconds) <= MIN_CALLS or sum(seconds[1:]) < MIN_SECONDS:
        began = time.perf_counter()
        score(pixels)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > LONG_SECONDS:
            return seconds[-1]
    return statistics.median(seconds[1:])
