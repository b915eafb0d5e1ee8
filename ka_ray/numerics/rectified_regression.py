"""Fit a linear layer whose output passes through a ReLU: only what the ReLU lets through has to be right.

Shapes: n samples, G groups, D inputs and T outputs of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ka_ray.numerics.moments import Moments
from ka_ray.numerics.ridge import LayerSolution


@dataclass(frozen=True)
class Clamp:
    """The range that an activation passes on unchanged: values outside become its ends.

    Attributes:
        low: Lower end; minus infinity: none.
        high: Upper end; 6 for ReLU6.
    """

    low: float = 0.0
    high: float = float("inf")

    def residual(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return target - estimate, but 0 where both lie on the same side outside of the range."""
        below = (target <= self.low) & (estimate <= self.low)
        above = (target >= self.high) & (estimate >= self.high)
        return (target.clamp(self.low, self.high) - estimate).masked_fill(below | above, 0.0)


def refine_solution(
    solution: LayerSolution,
    inputs: Tensor,
    targets: Tensor,
    moments: list[Moments],
    clamp: Clamp,
    steps: int,
    merge: Callable[[Tensor], Tensor],
) -> LayerSolution:
    """Improve a least-squares solution by what the activation behind the layer makes irrelevant.

    Least squares fits negative outputs, too, although a ReLU removes them. Each step replaces the targets
    outside of the range by the estimates where those lie outside, too, and solves again: the convex loss
    ``||residual||^2`` falls in each step (majorisation; Zhang et al., "Accelerating Very Deep Convolutional
    Networks", TPAMI 2016, solve the same problem). Momentum after Nesterov saves steps.

    Args:
        solution: The least-squares solution.
        inputs: `[n, G, D]`.
        targets: `[n, G, T]`.
        moments: For each group the moments of inputs and targets that the solution was computed from, over
            all ranks.
        clamp: Range of the activation.
        steps: Number of steps.
        merge: Adds a float64 tensor up over all ranks.
    """
    size = inputs.shape[2]
    factors, means, penalties = list[Tensor](), list[Tensor](), list[Tensor]()
    for part in moments:
        gram = part.covariance[:size, :size]
        penalty = solution.ridge * gram.diagonal().mean().clamp_min(1e-300)
        factors.append(torch.linalg.cholesky(gram + penalty * torch.eye(size, dtype=gram.dtype)))
        means.append(part.mean[:size])
        penalties.append(penalty)
    factor, mean, penalty = torch.stack(factors), torch.stack(means), torch.stack(penalties)[:, None, None]
    centred = inputs - mean.to(inputs.dtype)
    # The bias belongs to centred inputs, which makes it independent of the weight.
    weight, bias = solution.weight, solution.bias + (solution.weight @ mean[..., None])[..., 0]
    before_weight, before_bias = weight, bias
    for step in range(steps):
        momentum = step / (step + 3)
        ahead_weight = weight + momentum * (weight - before_weight)
        ahead_bias = bias + momentum * (bias - before_bias)
        estimate = torch.einsum("ngd,gtd->ngt", centred, ahead_weight.to(inputs.dtype))
        estimate += ahead_bias.to(inputs.dtype)
        residual = clamp.residual(estimate, targets)
        cross = torch.einsum("ngd,ngt->gdt", centred, residual).double()
        sums = merge(torch.cat([cross.flatten(), residual.sum(dim=0).double().flatten()])) / moments[0].count
        cross, shift = sums[: cross.numel()].view_as(cross), sums[cross.numel() :].view_as(bias)
        change = torch.cholesky_solve(cross - penalty * ahead_weight.transpose(1, 2), factor)
        before_weight, before_bias = weight, bias
        weight, bias = ahead_weight + change.transpose(1, 2), ahead_bias + shift
    return replace(solution, weight=weight, bias=bias - (weight @ mean[..., None])[..., 0])
