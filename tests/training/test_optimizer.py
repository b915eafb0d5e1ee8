"""Test the optimizer's groups of parameters: learning rates per depth, and weight decay."""

import numpy as np
import pytest
import torch
from torch import nn

from ka_ray.training import FitSettings
from ka_ray.training.optimizer import (
    build_optimizer,
    find_rate_factors,
    learning_rate_factor,
    set_learning_rate,
)

RATE = 0.1


def make_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5, 2)
    )


def settings_of(**options) -> FitSettings:
    return FitSettings("joint", 1, RATE, **options)


def test_the_rate_falls_by_the_decay_from_block_to_block():
    assert find_rate_factors(make_network(), 0.5) == {
        "4.weight": 1.0,
        "4.bias": 1.0,
        "2.weight": 0.5,
        "2.bias": 0.5,
        "0.weight": 0.25,
        "1.weight": 0.25,
        "1.bias": 0.25,
    }


def test_a_first_step_of_adam_moves_every_parameter_by_the_rate_of_its_depth():
    """The first step of Adam is the learning rate times the sign of the gradient."""
    network = make_network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = build_optimizer(network, settings_of(layer_decay=0.5))
    set_learning_rate(optimizer, RATE / 2)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    depths = {"0": 2, "1": 2, "2": 1, "4": 0}
    for name, parameter in network.named_parameters():
        expected = before[name] - RATE / 2 * 0.5 ** depths[name[0]]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay_biases", [False, True])
def test_weight_decay_leaves_biases_and_norms_alone_unless_asked(decay_biases):
    network = make_network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = build_optimizer(network, settings_of(weight_decay=0.3, decay_biases=decay_biases))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        decayed = decay_biases or name in {"0.weight", "2.weight", "4.weight"}
        expected = before[name] * (1 - RATE * 0.3) if decayed else before[name]
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_by_default_one_group_has_all_trainable_parameters():
    network = make_network()
    network[0].requires_grad_(False)
    (group,) = build_optimizer(network, settings_of()).param_groups
    expected = [p for p in network.parameters() if p.requires_grad]
    assert all(a is b for a, b in zip(group["params"], expected, strict=True))
    assert (group["lr"], group["weight_decay"], group["betas"]) == (RATE, 0, (0.9, 0.999))


@pytest.mark.parametrize(("warmup", "peak"), [(0.0, 0), (0.1, 9), (0.5, 49)])
def test_the_rate_rises_during_the_warm_up(warmup, peak):
    factors = [learning_rate_factor(step, 100, warmup) for step in range(100)]
    assert factors.index(1.0) == peak
    np.testing.assert_allclose(factors[: peak + 1], np.arange(1, peak + 2) / (peak + 1))
    assert factors[peak + 1 :] == sorted(factors[peak + 1 :], reverse=True)
