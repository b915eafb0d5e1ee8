"""Solve layers whose Gram matrix is too large for the memory: least squares by conjugate gradients.

Shapes: n samples, G groups of a layer, D inputs and T outputs of one group.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.numerics.ranks import sum_over_ranks
from ka_ray.numerics.relative_error import relative_error, squared_error_sums
from ka_ray.numerics.ridge import LayerSolution

DEFAULT_RIDGE = 1e-4
"""Ridge penalty, in units of the mean variance of an input. Unlike in
:func:`ka_ray.numerics.ridge.solve`, it is not chosen on held-out images, because each candidate would need
all passes again."""

TOLERANCE = 1e-6
"""The iteration stops when each output's residual norm is at most this share of its initial norm."""

SampleStream = Callable[[], Iterator[tuple[bool, Tensor]]]
"""Function that starts one pass over this rank's samples. It yields pairs: whether the samples are held out,
and the samples `[n, G, D + T]`, inputs followed by targets. Every pass yields the same samples."""


@dataclass(frozen=True)
class _SampleStats:
    """Statistics of the samples that are not held out, over all ranks, in float64.

    Attributes:
        count: n, a scalar.
        input_mean: `[G, D]`.
        target_mean: `[G, T]`.
        variance: `[G, D]`, variance of every input.
        cross: `[G, D, T]`, covariance of inputs and targets.
    """

    count: Tensor
    input_mean: Tensor
    target_mean: Tensor
    variance: Tensor
    cross: Tensor


def solve_iteratively(
    stream: SampleStream,
    groups: int,
    num_inputs: int,
    num_outputs: int,
    device: torch.device,
    ridge: float = DEFAULT_RIDGE,
    max_passes: int = 100,
) -> tuple[LayerSolution, int]:
    """Solve a layer by conjugate gradients, without its Gram matrix.

    Each step multiplies by the Gram matrix in one pass over the samples (Hestenes and Stiefel, 1952; the
    preconditioner is the variance of the inputs). Every rank gets the same solution.

    Args:
        stream: The samples of this rank, which may have none to learn from, or none that are held out.
        groups: G.
        num_inputs: D.
        num_outputs: T.
        device: Device of the sums.
        ridge: Ridge penalty, in units of the mean variance of an input.
        max_passes: Maximum number of steps, one pass each. If the iteration has not converged by then, the
            solution so far is returned.

    Returns:
        The solution, and the number of passes over the samples.

    Raises:
        InputError: On all ranks together no sample is held out, or there are none to learn from.
    """
    stats = _sample_stats(stream, groups, num_inputs, num_outputs, device)
    penalty = ridge * stats.variance.mean(dim=1, keepdim=True).clamp_min(1e-300)
    weights, output_variance, steps = _iterate(stream, stats, penalty, max_passes)
    bias = stats.target_mean - torch.einsum("gdt,gd->gt", weights, stats.input_mean)
    error = _held_out_error(stream, weights, bias)
    # The mean output of a fit with bias equals the mean of the targets.
    mean = stats.target_mean
    solution = LayerSolution(weights.transpose(1, 2), bias, mean, output_variance, ridge, error)
    return solution, steps + 3  # two passes for the statistics, one for the held-out error


def _sample_stats(
    stream: SampleStream, groups: int, num_inputs: int, num_outputs: int, device: torch.device
) -> _SampleStats:
    """Measure the statistics in two passes: first the means, then the deviations from them."""
    count = torch.zeros((), dtype=torch.float64, device=device)
    total = torch.zeros(groups, num_inputs + num_outputs, dtype=torch.float64, device=device)
    for held_out, samples in stream():
        if not held_out:
            count += len(samples)
            total += samples.to(torch.float64).sum(dim=0)
    count, total = sum_over_ranks(count), sum_over_ranks(total)
    if not count:  # only then, and so on all ranks: one that raised alone would leave the others waiting
        raise InputError(
            "layers.solver least_squares: there are no images to learn from beside those that are held out; "
            "give more images"
        )
    means, inputs = total / count, num_inputs
    squares = torch.zeros(groups, inputs, dtype=torch.float64, device=device)
    cross = torch.zeros(groups, inputs, num_outputs, dtype=torch.float64, device=device)
    for held_out, samples in stream():
        if not held_out:
            deviations = samples.to(torch.float64) - means
            squares += deviations[..., :inputs].square().sum(dim=0)
            cross += torch.einsum("ngd,ngt->gdt", deviations[..., :inputs], deviations[..., inputs:])
    return _SampleStats(
        count,
        means[:, :inputs],
        means[:, inputs:],
        sum_over_ranks(squares) / count,
        sum_over_ranks(cross) / count,
    )


def _iterate(
    stream: SampleStream, stats: _SampleStats, penalty: Tensor, max_steps: int
) -> tuple[Tensor, Tensor, int]:
    """Run conjugate gradients for all outputs at once, each with its own step size.

    Args:
        stream: The samples of this rank.
        stats: Their statistics.
        penalty: `[G, 1]`, the ridge in the units of the covariance.
        max_steps: Maximum number of steps, each a pass over the samples.

    Returns:
        The weights `[G, D, T]`, the variance `[G, T]` of the outputs with these weights, and the number of
        steps.
    """
    # In textbook notation: residual is r, preconditioned is z = M^-1 r with M the diagonal of the matrix,
    # direction is p, and energy is r'z.
    inverse_diagonal = 1 / (stats.variance + penalty)[:, :, None]
    weights = torch.zeros_like(stats.cross)
    residual, steps = stats.cross.clone(), 0
    direction = preconditioned = inverse_diagonal * residual
    energy = (residual * preconditioned).sum(dim=1, keepdim=True)
    target_energy = TOLERANCE**2 * energy
    while steps < max_steps and bool((energy > target_energy).any()):
        product = _multiply_by_gram(stream, stats, penalty, direction)
        step = _divide(energy, (direction * product).sum(dim=1, keepdim=True))
        weights, residual, steps = weights + step * direction, residual - step * product, steps + 1
        preconditioned = inverse_diagonal * residual
        previous_energy, energy = energy, (residual * preconditioned).sum(dim=1, keepdim=True)
        direction = preconditioned + _divide(energy, previous_energy) * direction
    # residual = cross - (covariance + penalty) weights, so no further pass is needed for this product.
    covariance_weights = stats.cross - residual - penalty[:, :, None] * weights
    return weights, (weights * covariance_weights).sum(dim=1), steps


def _multiply_by_gram(
    stream: SampleStream, stats: _SampleStats, penalty: Tensor, directions: Tensor
) -> Tensor:
    """Multiply ``covariance + penalty`` by directions `[G, D, T]`, in one pass over the samples."""
    total = torch.zeros_like(directions)
    for held_out, samples in stream():
        if not held_out:
            inputs = samples[..., : directions.shape[1]].to(torch.float64) - stats.input_mean
            outputs = torch.einsum("ngd,gdt->ngt", inputs, directions)
            total += torch.einsum("ngd,ngt->gdt", inputs, outputs)
    return sum_over_ranks(total) / stats.count + penalty[:, :, None] * directions


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, or return 0 where the denominator is not positive: a converged output no longer changes."""
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-300), 0.0)


def _held_out_error(stream: SampleStream, weights: Tensor, bias: Tensor) -> float:
    """Compute the relative error on the held-out samples of all ranks in one pass."""
    size, num_outputs = weights.shape[1:]
    sums = weights.new_zeros(2 + 2 * bias.numel())
    for held_out, samples in stream():
        if held_out:
            inputs, targets = samples.to(torch.float64).split([size, num_outputs], dim=2)
            estimates = torch.einsum("ngd,gdt->ngt", inputs, weights) + bias
            sums += squared_error_sums(estimates.flatten(1), targets.flatten(1))
    sums = sum_over_ranks(sums)
    if not sums[1]:  # the number of held-out samples
        raise InputError(
            "layers.solver least_squares: there are too few images to hold some out for measuring the error; "
            "give more images"
        )
    return relative_error(sums)
