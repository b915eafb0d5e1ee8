"""Test that the relative error from sums over batches equals the one computed over all data at once."""

import math

import pytest
import torch

from ka_ray.numerics.relative_error import relative_error, squared_error_sums


@pytest.mark.parametrize("sizes", [[50], [1, 49], [20, 0, 30]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_batches_give_the_error_over_all_data(sizes, dtype):
    targets = torch.randn(50, 4, dtype=dtype) * torch.tensor([1, 3, 5, 0], dtype=dtype) + 2
    estimates = targets + 0.3 * torch.randn(50, 4, dtype=dtype)
    batches = zip(estimates.split(sizes), targets.split(sizes), strict=True)
    sums = sum(squared_error_sums(*batch) for batch in batches)
    assert sums.dtype == torch.float64
    estimates64, targets64 = estimates.double(), targets.double()
    expected = (estimates64 - targets64).square().sum() / (targets64 - targets64.mean(dim=0)).square().sum()
    assert relative_error(sums) == pytest.approx(expected.item(), rel=1e-10)


def test_the_mean_as_estimate_has_error_one_and_a_perfect_estimate_zero():
    targets = torch.randn(30, 3, dtype=torch.float64)
    mean = targets.mean(dim=0).expand(30, 3)
    assert relative_error(squared_error_sums(mean, targets)) == pytest.approx(1)
    assert relative_error(squared_error_sums(targets, targets)) == 0


def test_constant_targets_give_a_finite_error():
    targets = torch.ones(5, 2)
    assert relative_error(squared_error_sums(targets, targets)) == 0
    assert math.isfinite(relative_error(squared_error_sums(targets + 1, targets)))
