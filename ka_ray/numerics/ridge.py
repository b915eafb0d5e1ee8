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
    fitted_on, judged_on = _stack(learned_from), _stack(held_out)
    # One error per ridge, over all groups: a layer has a single ridge.
    errors = [
        _relative_error(*judged_on, *_ridge_regression(*fitted_on, num_outputs, ridge)) for ridge in ridges
    ]
    best = min(range(len(ridges)), key=errors.__getitem__)
    # The held-out images were only needed for the choice, so the final solution uses them as well.
    both = [first.merge(second) for first, second in zip(learned_from, held_out, strict=True)]
    mean, covariance = _stack(both)
    weight, bias = _ridge_regression(mean, covariance, num_outputs, ridges[best])
    size = weight.shape[2]
    variance = (weight @ covariance[:, :size, :size] * weight).sum(dim=2)
    outputs = _matvec(weight, mean[:, :size]) + bias
    return LayerSolution(weight, bias, outputs, variance, ridges[best], errors[best])


def _stack(groups: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    """Return means `[G, D + T]` and covariances `[G, D + T, D + T]`: one operation then serves all groups."""
    return torch.stack([part.mean for part in groups]), torch.stack([part.covariance for part in groups])


def _matvec(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Multiply each group's matrix by its vector."""
    return (matrices @ vectors[..., None])[..., 0]


def _ridge_regression(
    mean: Tensor, covariance: Tensor, num_outputs: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Minimise ``E||W x + b - y||^2 + ridge * mean variance * ||W||^2``; the bias is not penalised."""
    size = mean.shape[1] - num_outputs
    gram, cross = covariance[:, :size, :size], covariance[:, :size, size:]
    # If all inputs are constant, their variance is 0 and the ridge term still has to be positive.
    variance = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-280)
    identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
    # The ridge makes the matrix positive definite, so Cholesky works even if inputs are linearly dependent.
    factor = torch.linalg.cholesky(gram + ridge * variance[:, None, None] * identity)
    weight = torch.cholesky_solve(cross, factor).transpose(1, 2)
    return weight, mean[:, size:] - _matvec(weight, mean[:, :size])


def _relative_error(mean: Tensor, covariance: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Compute the relative error of all groups together from their joint moments of inputs and targets."""
    size = weight.shape[2]
    gram, cross = covariance[:, :size, :size], covariance[:, :size, size:]
    # Variance of W x + b - y; the covariances of the targets among each other are not needed.
    variance = covariance[:, size:, size:].diagonal(dim1=1, dim2=2).sum()
    error = (weight @ gram * weight).sum() - 2 * (weight * cross.transpose(1, 2)).sum() + variance
    error += (_matvec(weight, mean[:, :size]) + bias - mean[:, size:]).square().sum()
    return float(error) / max(float(variance), 1e-300)
