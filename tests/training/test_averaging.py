"""Test the moving average of weights against a plain loop in float64."""

import pytest
import torch
from torch import nn

from ka_ray.training import WeightAverage
from ka_ray.training.averaging import averaging_decay

STEPS = 300


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_weights_and_running_statistics_equal_those_of_a_plain_loop(decay):
    network = make_network()
    average, expected = WeightAverage(network, decay), {}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(STEPS):
        network.train()(torch.randn(8, 3, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        average.update()
        weight = min(decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if step == 0 or not tensor.is_floating_point():
                expected[name] = tensor.clone()
            else:
                expected[name] = weight * expected[name] + (1 - weight) * tensor
    assert expected["1.num_batches_tracked"] == STEPS
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-12)


def test_in_a_short_run_the_average_covers_the_last_steps():
    """With a decay of .999 from the start, 74 % of an average over 300 steps would be the first step."""
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, 0.999)
    for step in range(STEPS):
        nn.init.constant_(network.weight, step)
        average.update()
    behind = STEPS - 1 - average.module.weight.item()
    assert 0.05 * STEPS < behind < 0.15 * STEPS


def test_the_limit_of_the_decay_is_reached():
    assert averaging_decay(8_990, 0.999) == averaging_decay(10**6, 0.999) == 0.999
    assert averaging_decay(8_000, 0.999) < 0.999


def test_the_average_is_a_copy_in_eval_mode_and_has_no_weights_of_the_network():
    network = make_network()
    average = WeightAverage(network, 0.9)
    assert not any(module.training for module in average.modules())
    assert network.training
    with torch.no_grad():
        network[0].weight.add_(1)
    assert not torch.equal(average.module[0].weight, network[0].weight)
    assert set(average.state_dict()) == {"n_averaged", *(f"module.{name}" for name in network.state_dict())}
