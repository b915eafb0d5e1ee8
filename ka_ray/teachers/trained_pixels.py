"""Judge by its batch norms whether a network gets the pixels that it was trained on.

A batch norm keeps the mean and the variance that each channel had in training. Images that are resized or
normalised otherwise give other ones.

Shapes: n images, C channels, H and W in pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ka_ray.teachers.preprocess import Preprocess

BatchNorm = nn.modules.batchnorm._BatchNorm

SMALLEST_RATIO = 1e-6
"""The variance of a channel that is constant on all images, relative to that in training."""


def measure_misfit(network: nn.Module, preprocess: Preprocess, images: Tensor) -> float | None:
    """Return how far images are from what a network was trained on, as its batch norms remember it.

    For each channel before a batch norm, the Kullback-Leibler divergence of a Gaussian with the mean and the
    variance of the images from one with those of the training, in nats; its median over the channels,
    as a mean over the batch norms. It is near 0 for the training images in evaluation mode.

    Args:
        network: The network with its weights, in evaluation mode.
        preprocess: Turns the pixels into its input.
        images: Some images, ``[n, C, H, W]`` uint8.

    Returns:
        The divergence; None if no batch norm has learned what the training images were like.
    """
    with torch.inference_mode(), _divergences(network) as found:
        network(preprocess(images))
    return float(torch.stack(found).mean()) if found else None


@contextmanager
def _divergences(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect, in the forward passes inside, the median divergence of each batch norm."""
    found = list[Tensor]()

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        values = inputs[0].movedim(1, 0).flatten(1)  # channels x images and positions
        variance, mean = torch.var_mean(values, dim=1)
        usual = norm.running_var + norm.eps
        ratio = (variance / usual).clamp_min(SMALLEST_RATIO)
        shift = (mean - norm.running_mean).square() / usual
        found.append(((shift + ratio - 1 - ratio.log()) / 2).median())

    norms = [module for module in network.modules() if isinstance(module, BatchNorm) and _has_learned(module)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _has_learned(norm: BatchNorm) -> bool:
    """Return whether a batch norm has other statistics than those that it begins with."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    return bool((mean != 0).any() or (variance != 1).any())
