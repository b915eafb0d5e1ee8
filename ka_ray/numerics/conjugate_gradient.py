"""Layers whose Gram matrix would not fit: least squares by conjugate gradients, over the same samples.

Shapes: n samples, G groups, D inputs and T outputs of a group.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.numerics.ridge import LayerSolution

DEFAULT_RIDGE = 1e-4
"""In units of the mean variance of an input: to choose it would take as many passes again for every other."""

TOLERANCE = 1e-6
"""It ends where every output's residual is this share of what it was at first."""

Stream = Callable[[], Iterator[tuple[bool, Tensor]]]
"""Gives this rank's samples `[n, G, D + T]`, the same in every pass, and whether they are held out."""


@dataclass(frozen=True)
class _Statistics:
    """Of the samples that are learned from; `[G, D]`, `[G, T]`, and ``cross`` `[G, D, T]`."""

    count: Tensor
    input_mean: Tensor
    target_mean: Tensor
    variance: Tensor
    cross: Tensor


def solve_iteratively(
    stream: Stream,
    groups: int,
    num_outputs: int,
    device: torch.device,
    ridge: float = DEFAULT_RIDGE,
    max_passes: int = 100,
) -> tuple[LayerSolution, int]:
    """Solve a layer without its Gram matrix.

    Each step multiplies by that matrix in one pass over the samples (Hestenes and Stiefel, 1952; with the
    inputs' variances as preconditioner). Every rank gets the same.

    Args:
        stream: The samples.
        groups: G.
        num_outputs: T.
        device: Where it is summed.
        ridge: In units of the mean variance of an input.
        max_passes: At most so many steps.

    Returns:
        The solution, and how many passes over the samples it took.

    Raises:
        InputError: No sample is held out.
    """
    found = _statistics(stream, groups, num_outputs, device)
    penalty = ridge * found.variance.mean(dim=1, keepdim=True).clamp_min(1e-300)
    weights, spread, steps = _descend(stream, found, penalty, max_passes)
    bias = found.target_mean - torch.einsum("gdt,gd->gt", weights, found.input_mean)
    error = _held_out_error(stream, weights, bias)
    solution = LayerSolution(weights.transpose(1, 2), bias, found.target_mean, spread, ridge, error)
    return solution, steps + 3


def _statistics(stream: Stream, groups: int, num_outputs: int, device: torch.device) -> _Statistics:
    """Take two passes: the means, then what deviates from them."""
    count, total = torch.zeros((), dtype=torch.float64, device=device), None
    for held_out, samples in stream():
        if not held_out and len(samples):
            part = samples.to(torch.float64).sum(dim=0)
            count, total = count + len(samples), part if total is None else total + part
    if total is None:
        raise InputError("layers.solver least_squares: a worker has no images; give more, or fewer workers")
    count, means = sum_over_ranks(count), sum_over_ranks(total)
    means = means / count
    inputs = means.shape[1] - num_outputs
    squares = torch.zeros(groups, inputs, dtype=torch.float64, device=device)
    cross = torch.zeros(groups, inputs, num_outputs, dtype=torch.float64, device=device)
    for held_out, samples in stream():
        if not held_out:
            deviations = samples.to(torch.float64) - means
            squares += deviations[..., :inputs].square().sum(dim=0)
            cross += torch.einsum("ngd,ngt->gdt", deviations[..., :inputs], deviations[..., inputs:])
    return _Statistics(
        count,
        means[:, :inputs],
        means[:, inputs:],
        sum_over_ranks(squares) / count,
        sum_over_ranks(cross) / count,
    )


def _descend(
    stream: Stream, found: _Statistics, ridge: Tensor, max_passes: int
) -> tuple[Tensor, Tensor, int]:
    """Give the weights `[G, D, T]`, the variance `[G, T]` of what they give, and the steps taken."""

    def product(directions: Tensor) -> Tensor:
        total = torch.zeros_like(directions)
        for held_out, samples in stream():
            if not held_out:
                inputs = samples[..., : directions.shape[1]].to(torch.float64) - found.input_mean
                total += torch.einsum(
                    "ngd,ngt->gdt", inputs, torch.einsum("ngd,gdt->ngt", inputs, directions)
                )
        return sum_over_ranks(total) / found.count + ridge[:, :, None] * directions

    scale = 1 / (found.variance + ridge)[:, :, None]
    weights = torch.zeros_like(found.cross)
    residual, steps = found.cross.clone(), 0
    direction = preconditioned = scale * residual
    energy = (residual * preconditioned).sum(dim=1, keepdim=True)
    least = TOLERANCE**2 * energy
    while steps < max_passes and bool((energy > least).any()):
        image = product(direction)
        step = _ratio(energy, (direction * image).sum(dim=1, keepdim=True))
        weights, residual, steps = weights + step * direction, residual - step * image, steps + 1
        preconditioned = scale * residual
        before, energy = energy, (residual * preconditioned).sum(dim=1, keepdim=True)
        direction = preconditioned + _ratio(energy, before) * direction
    seen = found.cross - residual - ridge[:, :, None] * weights  # the covariance times the weights
    return weights, (weights * seen).sum(dim=1), steps


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp_min(1e-300), 0.0)


def _held_out_error(stream: Stream, weights: Tensor, bias: Tensor) -> float:
    size, num_outputs = weights.shape[1:]
    sums = weights.new_zeros(2 + 2 * bias.numel())  # squared error, count, targets, their squares
    for held_out, samples in stream():
        if held_out:
            inputs, targets = samples.to(torch.float64).split([size, num_outputs], dim=2)
            error = torch.einsum("ngd,gdt->ngt", inputs, weights) + bias - targets
            flat = targets.flatten(1)
            sums += torch.cat(
                [
                    error.square().sum().view(1),
                    sums.new_tensor([len(samples)]),
                    flat.sum(dim=0),
                    flat.square().sum(dim=0),
                ]
            )
    error, count, *_ = sums = sum_over_ranks(sums)
    if not count:
        raise InputError("layers.solver least_squares: too few images to hold some out; give more")
    means, squares = (sums[2:] / count).chunk(2)
    return float(error / count / (squares - means.square()).sum().clamp_min(1e-300))
