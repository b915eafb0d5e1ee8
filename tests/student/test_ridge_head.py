"""Test the head that ridge regression computes, against a solution in closed form."""

import numpy as np
import torch
from torch import nn

from ka_ray.student.ridge_head import RIDGES, find_linear_head, fit_ridge_head


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_the_head_is_the_ridge_regression_of_the_scores_on_its_inputs() -> None:
    network = make_network().train()
    torch.manual_seed(1)
    batches = [(torch.randn(16, 6), torch.randn(16, 3)) for _ in range(20)]
    fit_ridge_head(network, "3", batches)
    with torch.no_grad():
        inputs = torch.cat([network[1](network[0](x)) for x, _ in batches]).double().numpy()
    targets = torch.cat([y for _, y in batches]).double().numpy()
    centred, mean = inputs - inputs.mean(0), targets.mean(0)
    gram = centred.T @ centred / len(inputs)
    solutions = [
        np.linalg.solve(
            gram + ridge * np.trace(gram) / 8 * np.eye(8), centred.T @ (targets - mean) / len(inputs)
        ).T
        for ridge in RIDGES
    ]
    found = network[3].weight.detach().double().numpy()
    errors = [np.abs(found - solution).max() for solution in solutions]
    assert min(errors) < 1e-5
    bias = mean - solutions[int(np.argmin(errors))] @ inputs.mean(0)
    np.testing.assert_allclose(network[3].bias.detach().numpy(), bias, atol=1e-5)
    assert network.training


def test_a_head_that_can_be_matched_is_found_again() -> None:
    network, teacher = make_network(), make_network()
    with torch.no_grad():
        teacher[3].weight.mul_(-2)
    torch.manual_seed(1)
    images = torch.randn(40, 16, 6)
    with torch.no_grad():
        fit_ridge_head(network, "3", [(x, teacher.eval()(x)) for x in images])
        torch.testing.assert_close(network.eval()(images[0]), teacher(images[0]), rtol=1e-2, atol=1e-2)


def test_only_a_single_linear_layer_is_a_head() -> None:
    network = make_network()
    assert find_linear_head(network, ["3.weight", "3.bias"]) == "3"
    assert find_linear_head(network, ["3.weight", "0.weight"]) is None
    assert find_linear_head(nn.Sequential(nn.Conv2d(3, 5, 1)), ["0.weight"]) is None
