"""Solve layers by ridge regression from moments, with the ridge penalty chosen on held-out images.

Shapes: G groups of a layer, D inputs and T outputs of one group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments

HELD_OUT_FRACTION = 0.1
"""Fraction of the images that the ridge is chosen on."""


NUM_SOLVER_DRAWS = 2
"""Random numbers that a solver needs per image: which positions it samples, and whether it is held out."""


RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Candidates for the ridge, in units of the mean variance of an input."""


@dataclass(frozen=True)
class LayerSolution:
    """The least-squares optimum of one layer.

    Attributes:
        weight: `[G, T, D]`, float64.
        bias: `[G, T]`, float64.
        mean: `[G, T]`, mean of the layer's output with this weight and bias on the images it was solved on.
        variance: `[G, T]`, variance of that output.
        ridge: Ridge of the solution, in units of the mean variance of the layer's inputs.
        relative_error: ``E||estimate - target||^2 / E||target - mean||^2`` on the held-out images, for the
            weights that were learned without them.
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
    """Solve a layer: choose the ridge on the held-out images, then solve on all images with it.

    Args:
        learned_from: For each group the moments of `[n, D + T]` samples: a group's inputs, then its
            targets; see :func:`ka_ray.student.linear_layers.make_layer_samples`.
        held_out: The same for the held-out images.
        num_outputs: T.
        ridges: Candidates for the ridge, in units of the mean variance of an input.

    Raises:
        InputError: No image is held out.
    """
    if not held_out[0].count:
        raise InputError(
            "layers.solver least_squares: there are too few images to hold some out for choosing the ridge; "
            "give more images"
        )
    errors = []  # one per ridge, over all groups: a layer has a single ridge
    for ridge in ridges:
        fitted = [_ridge_regression(part, num_outputs, ridge) for part in learned_from]
        errors.append(_relative_error(held_out, fitted))
    best = min(range(len(ridges)), key=errors.__getitem__)
    # The held-out images were only needed for the choice, so the final solution uses them as well.
    both = [first.merge(second) for first, second in zip(learned_from, held_out, strict=True)]
    groups = []
    for moments in both:
        weight, bias = _ridge_regression(moments, num_outputs, ridges[best])
        output = moments.slice_channels(0, weight.shape[1]).apply_affine(weight, bias)
        groups.append((weight, bias, output.mean, output.covariance.diagonal()))
    weights, biases, means, variances = (torch.stack(tensors) for tensors in zip(*groups, strict=True))
    return LayerSolution(weights, biases, means, variances, ridges[best], errors[best])


def _ridge_regression(moments: Moments, num_outputs: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Minimise ``E||W x + b - y||^2 + ridge * mean variance * ||W||^2``; the bias is not penalised."""
    size = len(moments.mean) - num_outputs
    gram, cross = moments.covariance[:size, :size], moments.covariance[:size, size:]
    # If all inputs are constant, their variance is 0 and the ridge term still has to be positive.
    variance = gram.diagonal().mean().clamp_min(1e-300)
    identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
    # The ridge makes the matrix positive definite, so Cholesky works even if inputs are linearly dependent.
    factor = torch.linalg.cholesky(gram + ridge * variance * identity)
    weight = torch.cholesky_solve(cross, factor).T
    return weight, moments.mean[size:] - weight @ moments.mean[:size]


def _relative_error(groups: Sequence[Moments], fitted: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Compute the relative error of all groups together from their joint moments of inputs and targets."""
    error = variance = 0.0
    for moments, (weight, bias) in zip(groups, fitted, strict=True):
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        # The residual W x + b - y is an affine map of the joint vector (x, y).
        residual = torch.cat([weight, -identity], dim=1)
        error += float(moments.expected_squared_norm(residual, bias))
        variance += float(moments.covariance[weight.shape[1] :, weight.shape[1] :].trace())
    return error / max(variance, 1e-300)
