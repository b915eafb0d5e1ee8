"""Test that taps read the outputs of modules and leave the network unchanged."""

import pytest
import torch
from torch import nn

from ka_ray.errors import InputError
from ka_ray.features.taps import Taps, find_module


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2)
    ).eval()


def count_hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_features_are_the_outputs_of_the_modules(network):
    images = torch.randn(5, 3, 4, 4)
    with Taps(network, {"map": "0", "vector": "4"}) as taps:
        network(images)
    torch.testing.assert_close(taps.features["map"], network[0](images))
    torch.testing.assert_close(taps.features["vector"], network(images))


def test_features_are_not_changed_by_an_in_place_activation_after_the_tap(network):
    images = torch.randn(5, 3, 4, 4)
    with Taps(network, {"tap": "1"}) as taps:
        network(images)
    expected = network[1](network[0](images))
    assert (expected < 0).any()
    torch.testing.assert_close(taps.features["tap"], expected)


def test_every_forward_pass_replaces_the_features(network):
    first, second = torch.randn(2, 3, 4, 4), torch.randn(3, 3, 4, 4)
    with Taps(network, {"tap": "0"}) as taps:
        network(first)
        kept = taps.features["tap"]
        network(second)
    assert taps.features["tap"].shape[0] == 3
    torch.testing.assert_close(kept, network[0](first))


def test_scores_are_those_of_the_untapped_network(network):
    images = torch.randn(2, 3, 4, 4)
    expected = network(images)
    with Taps(network, {"a": "0", "b": "1", "c": "2"}):
        assert torch.equal(network(images), expected)


def test_features_have_no_gradient(network):
    with Taps(network, {"tap": "0"}) as taps:
        network(torch.randn(2, 3, 4, 4))
    assert not taps.features["tap"].requires_grad


def test_hooks_exist_only_inside_the_context(network):
    with Taps(network, {"a": "0", "b": "1"}) as taps:
        assert count_hooks(network) == 2
    assert count_hooks(network) == 0
    network(torch.randn(2, 3, 4, 4))
    assert taps.features == {}


def test_hooks_are_removed_after_an_exception(network):
    with pytest.raises(RuntimeError), Taps(network, {"a": "0", "b": "4"}):
        network(torch.randn(2, 3, 9, 9))
    assert count_hooks(network) == 0


def test_creating_taps_registers_no_hooks(network):
    Taps(network, {"a": "0"})
    assert count_hooks(network) == 0


@pytest.mark.parametrize("path", ["features.norm3", "norm", "", "features.norm1.weight"])
def test_an_unknown_path_is_refused_with_similar_paths_named(path):
    features = nn.Sequential()
    for i in (1, 2):
        features.add_module(f"norm{i}", nn.BatchNorm2d(2))
    network = nn.ModuleDict({"features": features})
    with pytest.raises(InputError, match=r"taps\.conv3: .*Similar paths: .*features\.norm1") as caught:
        find_module(network, "conv3", path)
    assert repr(path) in str(caught.value)


def test_a_known_path_returns_its_module(network):
    assert find_module(network, "tap", "4") is network[4]
