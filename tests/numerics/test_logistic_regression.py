"""Test logistic regression against closed forms, plain gradient descent and its optimality conditions."""

import math

import pytest
import torch
from torch import Tensor

from ka_ray.numerics.logistic_regression import fit_logistic_regression


def draw(n: int, d: int, outcomes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, d, generator=generator, dtype=torch.float64)
    owners = torch.randint(outcomes, (n,), generator=generator)
    return inputs, torch.nn.functional.one_hot(owners, outcomes).double()


def test_without_inputs_the_bias_gives_the_frequencies():
    targets = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]], dtype=torch.float64)
    solved = fit_logistic_regression(torch.zeros(4, 1, dtype=torch.float64), targets, 1.0)
    assert float(solved.bias[0] - solved.bias[1]) == pytest.approx(math.log(3), abs=1e-4)


def test_an_offset_that_explains_everything_leaves_nothing_to_learn():
    inputs, _ = draw(40, 3, 2)
    offset = torch.randn(40, 2, dtype=torch.float64)
    solved = fit_logistic_regression(inputs, offset.softmax(dim=1), 0.1, offset=offset)
    assert float(solved.weight.abs().max()) < 1e-4
    assert float((solved.bias[0] - solved.bias[1]).abs()) < 1e-4


@pytest.mark.parametrize(("n", "d"), [(50, 4), (12, 30)])
def test_the_gradient_is_zero_at_the_solution(n, d):
    inputs, targets = draw(n, d, 3)
    weights = torch.linspace(1, 2, n, dtype=torch.float64)
    solved = fit_logistic_regression(inputs, targets, 0.05, sample_weights=weights)
    residual = (solved(inputs).softmax(dim=1) - targets) * (weights / weights.sum())[:, None]
    assert float((inputs.T @ residual + 0.05 * solved.weight).abs().max()) < 1e-4
    assert float(residual.sum(dim=0).abs().max()) < 1e-4


def test_fewer_samples_than_inputs_agree_with_gradient_descent():
    inputs, targets = draw(6, 9, 2)
    weight = torch.zeros(9, 2, dtype=torch.float64)
    bias = torch.zeros(2, dtype=torch.float64)
    for _ in range(20000):
        residual = ((inputs @ weight + bias).softmax(dim=1) - targets) / 6
        weight = weight - 0.1 * (inputs.T @ residual + 0.1 * weight)
        bias = bias - 0.1 * residual.sum(dim=0)
    solved = fit_logistic_regression(inputs, targets, 0.1)
    assert torch.allclose(solved.weight, weight, atol=1e-4)
