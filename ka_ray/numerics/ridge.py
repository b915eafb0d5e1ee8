"""Ridge regression from sums of moments, its strength chosen on held-out images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments

HELD_OUT_FRACTION = 0.1
"""On this share of the images the ridge is chosen."""


NUM_SOLVER_DRAWS = 2
"""Random numbers of an image: which positions count, and whether it is held out."""


RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""From these the ridge is chosen on held-out images, in units of the mean variance of an input."""


@dataclass(frozen=True)
class LayerSolution:
    """The optimum of one layer.

    Attributes:
        weight: `[G, T, D]`, float64.
        bias: `[G, T]`, float64.
        mean: `[G, T]`, of what the layer then gives on these images.
        variance: `[G, T]`, likewise.
        ridge: That was chosen, in units of the mean variance of the layer's inputs.
        relative_error: With it, ``E||estimate - target||^2 / E||target - mean||^2`` on the held-out images.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    ridge: float
    relative_error: float


def solve(
    learned_from: Sequence[Moments],
    held_out: Sequence[Moments],
    num_outputs: int,
    ridges: Sequence[float] = RIDGES,
) -> LayerSolution:
    """Solve a layer: choose the ridge on the held-out part, then take its optimum on both parts together.

    Args:
        learned_from: Group by group the moments of `[n, D + T]`, see :func:`make_layer_samples`.
        held_out: The same of other images.
        num_outputs: T.
        ridges: To choose from.

    Raises:
        InputError: No image is held out.
    """
    if not held_out[0].count:
        raise InputError("layers.solver least_squares: too few images to hold some out; give more")
    errors = []
    for ridge in ridges:
        found = [_ridge_regression(part, num_outputs, ridge) for part in learned_from]
        errors.append(_relative_error(held_out, found))
    best = min(range(len(ridges)), key=errors.__getitem__)
    both = [first.merge(second) for first, second in zip(learned_from, held_out, strict=True)]
    parts = []
    for part in both:
        weight, bias = _ridge_regression(part, num_outputs, ridges[best])
        given = part.part(0, weight.shape[1]).mapped(weight, bias)
        parts.append((weight, bias, given.mean, given.covariance.diagonal()))
    weights, biases, means, variances = (torch.stack(one) for one in zip(*parts, strict=True))
    return LayerSolution(weights, biases, means, variances, ridges[best], errors[best])


def _ridge_regression(moments: Moments, num_outputs: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Minimise ``E||W x + b - y||^2 + ridge * mean variance * ||W||^2``; the bias is not held down."""
    size = len(moments.mean) - num_outputs
    gram, cross = moments.covariance[:size, :size], moments.covariance[:size, size:]
    variance = gram.diagonal().mean().clamp_min(1e-300)
    identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + ridge * variance * identity)
    weight = torch.cholesky_solve(cross, factor).T
    return weight, moments.mean[size:] - weight @ moments.mean[:size]


def _relative_error(parts: Sequence[Moments], weights: Sequence[tuple[Tensor, Tensor]]) -> float:
    error = variance = 0.0
    for moments, (weight, bias) in zip(parts, weights, strict=True):
        size = weight.shape[1]
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        residual = torch.cat([weight, -identity], dim=1)
        offset = residual @ moments.mean + bias
        error += float((residual @ moments.covariance * residual).sum() + offset.square().sum())
        variance += float(moments.covariance[size:, size:].trace())
    return error / max(variance, 1e-300)
