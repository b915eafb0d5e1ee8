"""Test that layers in front of a ReLU are fitted to what the ReLU lets through, and samples of layers."""

import pytest
import torch
from torch import Tensor

from ka_ray.numerics.rectified_regression import Clamp, refine_solution
from ka_ray.numerics.ridge import LayerSolution, solve
from ka_ray.numerics.samples import LayerSamples, merged_cross_moments, merged_moments

RELU, RELU6 = Clamp(), Clamp(0.0, 6.0)


def make_samples(groups: int = 2, others: float = 0.0) -> tuple[LayerSamples, Tensor]:
    """Return inputs, and targets that no linear map of them reaches, with what is added to them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, groups, 4, generator=generator) + 1
    hidden = torch.randn(500, groups, 3, generator=generator)
    targets = inputs[..., :3] * 2 - hidden.square() + 0.5
    held_out = torch.arange(500) % 10 == 0
    return LayerSamples(torch.cat([inputs, targets], dim=2), held_out, 3), others * hidden


def solve_linearly(samples: LayerSamples) -> tuple[LayerSolution, list]:
    parts = [samples.moments(held, lambda sums: sums) for held in (False, True)]
    both = [first.merge(second) for first, second in zip(*parts, strict=True)]
    return solve(*parts, samples.num_outputs, [1e-8]), both


def clamped_loss(solution: LayerSolution, samples: LayerSamples, others: Tensor, clamp: Clamp) -> Tensor:
    """The loss as a plain formula: squared distance to the set of outputs that the activation maps alike."""
    estimate = torch.einsum("ngd,gtd->ngt", samples.inputs.double(), solution.weight) + solution.bias + others
    target = samples.targets.double() + others
    nearest = torch.where(target <= clamp.low, estimate.clamp(max=clamp.low), target)
    nearest = torch.where(target >= clamp.high, estimate.clamp(min=clamp.high), nearest)
    return (nearest - estimate).square().sum()


@pytest.mark.parametrize("clamp", [RELU, RELU6])
@pytest.mark.parametrize("others", [0.0, 1.0])
def test_refinement_reaches_the_optimum_of_gradient_descent(clamp, others):
    samples, added = make_samples(others=others)
    linear, moments = solve_linearly(samples)
    refined = refine_solution(linear, samples, added, moments, clamp, 200, lambda sums: sums)
    weight = linear.weight.clone().requires_grad_()
    bias = linear.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        fitted = LayerSolution(weight, bias, bias, bias, 0.0, 0.0)
        loss = clamped_loss(fitted, samples, added, clamp)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = float(closure().detach())
    found = float(clamped_loss(refined, samples, added, clamp))
    assert found == pytest.approx(best, rel=1e-3)
    assert found < 0.99 * float(clamped_loss(linear, samples, added, clamp))


def test_a_solution_without_error_stays():
    samples, added = make_samples()
    exact = torch.cat([samples.inputs, samples.inputs[..., :3] * 2 - 1], dim=2)
    samples = LayerSamples(exact, samples.held_out, 3)
    linear, moments = solve_linearly(samples)
    refined = refine_solution(linear, samples, 0 * added, moments, RELU, 20, lambda sums: sums)
    torch.testing.assert_close(refined.weight, linear.weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(refined.bias, linear.bias, rtol=1e-5, atol=1e-5)


def test_moments_are_those_of_all_rows():
    rows = make_samples()[0].joint
    for group, moments in enumerate(merged_moments(rows, lambda sums: sums)):
        torch.testing.assert_close(moments.mean, rows[:, group].double().mean(dim=0))
        expected = torch.cov(rows[:, group].double().T, correction=0)
        torch.testing.assert_close(moments.covariance, expected)


def test_cross_moments_are_the_blocks_of_the_covariance():
    rows = make_samples()[0].joint[:, 0]
    found = merged_cross_moments(rows[:, :4], rows[:, 4:], lambda sums: sums)
    expected = torch.cov(rows.double().T, correction=0)
    torch.testing.assert_close(found.inputs, expected[:4, :4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cross, expected[:4, 4:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.outputs, expected.diagonal()[4:], rtol=1e-4, atol=1e-4)


def test_independent_values_have_no_covariances_and_all_others_stay():
    rows = make_samples()[0].joint
    full = merged_moments(rows, lambda sums: sums)
    for group, moments in enumerate(merged_moments(rows, lambda sums: sums, num_independent=3)):
        expected = torch.cov(rows[:, group].double().T, correction=0)
        expected[4:, 4:] = expected[4:, 4:].diagonal().diag()
        torch.testing.assert_close(moments.covariance, expected)
        torch.testing.assert_close(moments.mean, full[group].mean)
