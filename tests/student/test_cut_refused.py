"""Test the errors for networks that cannot be cut at a tap: they say why, and where to cut instead."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.student.cut import cut_into_stages, find_valid_taps
from ka_ray.student.trace import eval_mode
from ka_ray.teachers.plain import plain_conv_net


class CallsConvTwice(nn.Module):
    """A network that calls one conv twice, with a ReLU between the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.between, self.last = nn.ReLU(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.between(self.shared(self.stem(x))))).mean((2, 3))


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class ReturnsPair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x * 3


class NetworkWithForward(nn.Module):
    """A network with a few modules whose forward pass is a given function."""

    def __init__(self, forward: Callable[..., object]) -> None:
        super().__init__()
        self.conv1, self.relu, self.conv2 = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)
        self.both = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.pair = ReturnsPair()
        self._forward = forward

    def forward(self, x: Tensor) -> object:
        return self._forward(self, x)


def network_with_forward(function: Callable[..., object]) -> Callable[[], nn.Module]:
    return lambda: NetworkWithForward(function)


def add_outputs_of_pair(net: NetworkWithForward, x: Tensor) -> Tensor:
    left, right = net.pair(net.conv1(x))
    return left + right


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_find_valid_taps_returns_the_blocks_of_a_resnet():
    network = torchvision.models.resnet18(num_classes=2)
    blocks = [path for layer in "1234" for path in (f"layer{layer}.0", f"layer{layer}")]
    assert find_valid_taps(network) == ["conv1", "bn1", "relu", "maxpool", *blocks, "avgpool"]


def test_a_path_inside_a_block_is_refused_and_the_nearest_valid_ones_are_named():
    network = torchvision.models.resnet18(num_classes=2)
    with pytest.raises(InputError) as caught:
        cut_into_stages(network, {"inner": "layer1.0.conv1"})
    assert str(caught.value) == (
        "taps.inner: the network cannot be cut at 'layer1.0.conv1', because both sides would use more "
        "than its output (also: maxpool); the nearest taps that work: bn1, relu, maxpool, layer1.0, layer1, "
        "layer2.0"
    )
    for path in ("layer2.0.downsample", "layer3.1.bn2", "layer2.0.bn2"):
        with pytest.raises(InputError, match=f"cannot be cut at '{path}'.*would use more than its output"):
            cut_into_stages(network, {"inner": path})


def test_a_module_with_weights_can_be_called_in_only_one_stage():
    assert find_valid_taps(CallsConvTwice()) == ["stem", "shared", "last"]
    with pytest.raises(InputError, match=r"also: the weights of shared.*work: stem, shared, last"):
        cut_into_stages(CallsConvTwice(), {"a": "between"})


CHAIN = network_with_forward(lambda net, x: net.both(net.conv1(x)).mean((2, 3)))
REFUSED_NETWORKS: list[tuple[Callable[[], nn.Module], dict[str, str], str]] = [
    (
        lambda: plain_conv_net(5),
        {"a": "norm9"},
        r"taps\.a: the network has no module 'norm9'. Similar paths: norm",
    ),
    (lambda: plain_conv_net(5), {"scores": "norm1"}, r"taps\.scores: a tap cannot have this name"),
    (lambda: plain_conv_net(5), {"a.b": "norm1"}, r"taps\.a\.b: a tap cannot have this name"),
    (lambda: plain_conv_net(5), {"keys": "norm1"}, r"taps\.keys: a tap cannot have this name"),
    (lambda: plain_conv_net(5), {"a": "head"}, r"taps\.a: 'head' returns the scores, .*; the nearest"),
    (
        CHAIN,
        {"a": "conv2"},
        r"taps\.a: the network's forward never calls 'conv2'; .* work: conv1, both\.0, both$",
    ),
    (
        CHAIN,
        {"a": "both.1", "b": "both"},
        r"taps\.b: 'both' returns the same value as taps\.a, 'both\.1'; remove one",
    ),
    (network_with_forward(add_outputs_of_pair), {"a": "pair"}, r"'pair' does not return one tensor"),
    (
        network_with_forward(lambda net, x: (x, net.conv1(x))),
        {},
        r"its forward returns a tuple; it must return one tensor of scores",
    ),
    (
        network_with_forward(lambda net, x: (net.relu(x), net.conv1(x))[1]),
        {},
        r"relu changes its input in place",
    ),
    (
        network_with_forward(lambda net, x: (net.conv2(x), net.both(net.conv1(x)))[1]),
        {"a": "conv2"},
        r"taps\.a: 'conv2' is not on the path from the image to the scores; .* work: conv1",
    ),
    (
        network_with_forward(lambda net, x: net.conv1(x) * net.conv2(x)),
        {"a": "conv1"},
        r"cannot be cut at 'conv1', .*\(also: the image\); the nearest taps that work: none",
    ),
    (DataDependent, {}, r"student\.network: torch\.fx cannot trace it \(symbolically traced.*\); "),
    (network_with_forward(lambda net, x: net.conv1.bias * 2), {}, r"its scores do not depend on the image"),
    (TwoInputs, {}, r"student\.network: its forward needs 'y' besides the image"),
]


@pytest.mark.parametrize(("make", "paths", "message"), REFUSED_NETWORKS)
def test_a_network_that_cannot_be_cut_is_refused(make, paths, message):
    network = make()
    with pytest.raises(InputError, match=message):
        cut_into_stages(network, paths)
    assert all(module.training for module in network.modules())


def test_eval_mode_restores_every_mode_after_an_error():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout().eval())
    with pytest.raises(ValueError, match="input"), eval_mode(network):
        network(torch.zeros(3))
    assert [module.training for module in network.modules()] == [True, True, False]


def test_modules_with_tied_weights_can_be_in_only_one_stage():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.second.weight = self.first.weight
            self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))

        def forward(self, images):
            return self.head(self.second(self.first(self.stem(images))))

    network = Tied()
    network(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"also: the weights of first.*work: stem, second"):
        cut_into_stages(network, {"middle": "first"})
