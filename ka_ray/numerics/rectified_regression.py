"""Fit a linear layer whose output passes through a ReLU: only what the ReLU lets through has to be right.

Shapes: n samples, G groups, D inputs and T outputs of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ka_ray.numerics.moments import Moments
from ka_ray.numerics.ridge import LayerSolution
from ka_ray.numerics.samples import LayerSamples, Merge


@dataclass(frozen=True)
class Clamp:
    """The range that an activation passes on unchanged: values outside become its ends.

    Attributes:
        low: Lower end; minus infinity: none.
        high: Upper end; 6 for ReLU6.
    """

    low: float = 0.0
    high: float = float("inf")

    def bounds(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value that the activation maps to what it maps a target to."""
        lowest = target.clamp(max=self.high).masked_fill_(target <= self.low, -torch.inf)
        highest = target.clamp(min=self.low).masked_fill_(target >= self.high, torch.inf)
        return lowest, highest


def refine_solution(
    solution: LayerSolution,
    samples: LayerSamples,
    others: Tensor,
    moments: Sequence[Moments],
    clamp: Clamp,
    steps: int,
    merge: Merge,
) -> LayerSolution:
    """Improve a least-squares solution by what the activation behind the layer makes irrelevant.

    Each step replaces targets outside of the range by estimates that lie outside, too, and solves again, so
    that the convex loss falls (after Zhang et al., TPAMI 2016). Momentum after Nesterov saves steps.

    Args:
        solution: The least-squares solution.
        samples: This rank's samples.
        others: `[n, G, T]`, what is added to the layer's output before the activation.
        moments: For each group the moments of all ranks' samples.
        clamp: Range of the activation.
        steps: Number of steps.
        merge: Adds a float64 tensor up over all ranks.
    """
    size, count = samples.inputs.shape[2], moments[0].count
    gram = torch.stack([part.covariance[:size, :size] for part in moments])
    mean = torch.stack([part.mean[:size] for part in moments])
    penalty = solution.ridge * gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-280)[:, None, None]
    factor = torch.linalg.cholesky(gram + penalty * torch.eye(size, dtype=gram.dtype, device=gram.device))
    centred = _groups_first(samples.inputs - mean.to(samples.inputs.dtype))
    bounds = [_groups_first(bound - others) for bound in clamp.bounds(samples.targets + others)]
    # The bias belongs to centred inputs, which makes it independent of the weight.
    before = now = _with_bias(solution.weight, solution.bias + (solution.weight @ mean[..., None])[..., 0])
    for step in range(steps):
        ahead = now + step / (step + 3) * (now - before)
        sums = merge(_residual_sums(ahead, centred, bounds)) / count
        gradient = (sums[..., :-1] - penalty * ahead[..., :-1]).transpose(1, 2)
        change = torch.cholesky_solve(gradient, factor).transpose(1, 2)
        before, now = now, ahead + _with_bias(change, sums[..., -1])
    weight = now[..., :-1]
    return replace(solution, weight=weight, bias=now[..., -1] - (weight @ mean[..., None])[..., 0])


def _groups_first(rows: Tensor) -> Tensor:
    """Return `[G, n, N]` in one piece from `[n, G, N]`, because every step reads all of it."""
    return rows.transpose(0, 1).contiguous()


def _residual_sums(ahead: Tensor, centred: Tensor, bounds: Sequence[Tensor]) -> Tensor:
    """Return the sums of residuals times inputs, and of residuals, over samples: `[G, T, D + 1]`, float64.

    A residual leads from an estimate to the nearest value within its bounds, `[G, n, T]`.
    """
    weight, bias = ahead[..., :-1].to(centred.dtype), ahead[..., -1].to(centred.dtype)
    estimate = torch.baddbmm(bias[:, None], centred, weight.transpose(1, 2))
    residual = estimate.clamp(*bounds).sub_(estimate)
    cross = residual.transpose(1, 2) @ centred
    return _with_bias(cross.double(), residual.sum(dim=1).double())


def _with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """Put weights `[G, T, D]` and biases `[G, T]` side by side."""
    return torch.cat([weight, bias[..., None]], dim=2)
