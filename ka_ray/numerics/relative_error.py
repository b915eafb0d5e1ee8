"""Compute the relative error of estimates from sums that can be added over batches and workers.

The relative error is ``E||estimate - target||^2 / E||target - mean||^2``: 0 for perfect estimates, 1 for
the constant mean. Shapes: n samples, C channels.
"""

import torch
from torch import Tensor

LEAST_VARIATION = 1e-30
"""Lower limit of the targets' summed squared deviations: constant targets cause no division by zero."""


def squared_error_sums(estimates: Tensor, targets: Tensor) -> Tensor:
    """Sum the quantities that :func:`relative_error` needs over samples.

    The results for disjoint sets of samples can be added.

    Args:
        estimates: `[n, C]`.
        targets: `[n, C]`.

    Returns:
        `[2 + 2 C]` in float64: the squared error over all channels, n, and for every channel the sum and the
        sum of squares of the targets.
    """
    # In float64, because the variance of the targets is a difference of large sums.
    estimates, targets = estimates.to(torch.float64), targets.to(torch.float64)
    error = (estimates - targets).square().sum()
    head = torch.stack([error, error.new_tensor(len(targets))])
    return torch.cat([head, targets.sum(dim=0), targets.square().sum(dim=0)])


def relative_error(sums: Tensor) -> float:
    """Compute the relative error from :func:`squared_error_sums`, `[2 + 2 C]`; NaN for no samples."""
    error, count = float(sums[0]), float(sums[1])
    total, squares = sums[2:].chunk(2)
    return error / float((squares - total.square() / count).sum().clamp_min(LEAST_VARIATION))
