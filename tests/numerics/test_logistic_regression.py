"""Test logistic regression against closed forms, plain gradient descent and its optimality conditions."""

import math

import pytest
import torch
from torch import Tensor

from ka_ray.numerics.logistic_regression import fit_logistic_regression, pool_logits


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


def test_classes_of_an_outcome_share_its_probability():
    """Each outcome has two classes in opposite corners of a square, which nothing linear separates."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    which = torch.arange(400) % 4
    inputs = corners[which] + 0.2 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    targets = torch.nn.functional.one_hot(which // 2, 2).double()
    offset = 0.1 * torch.nn.functional.one_hot(which, 4).double()  # tells the classes of an outcome apart
    linear = fit_logistic_regression(inputs, targets, 1e-3)
    grouped = fit_logistic_regression(inputs, targets, 1e-3, offset=offset, sizes=[2, 2])
    owned = pool_logits(grouped(inputs) + offset, [2, 2])
    assert ((linear(inputs).argmax(dim=1) == which // 2).double().mean()) < 0.7
    assert ((owned.argmax(dim=1) == which // 2).double().mean()) > 0.99


def test_a_learned_scale_softens_an_offset_that_is_too_sure():
    generator = torch.Generator().manual_seed(0)
    offset = torch.randn(20000, 2, generator=generator, dtype=torch.float64)
    targets = offset.softmax(dim=1)
    nothing = torch.zeros(20000, 1, dtype=torch.float64)
    solved = fit_logistic_regression(nothing, targets, 1.0, offset=5 * offset, learn_scale=True)
    assert torch.allclose(solved.scale, torch.full((2,), 0.2, dtype=torch.float64), atol=0.03)
