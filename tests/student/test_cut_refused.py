"""Where a network cannot be cut, the error says why, and where it can."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.student.cut import cut, working_taps
from ka_ray.student.trace import evaluating
from ka_ray.teachers.plain import plain_conv_net


class Halved(nn.Module):
    """Calls one conv twice, with a module of its own between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.between, self.last = nn.ReLU(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.between(self.shared(self.stem(x))))).mean((2, 3))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x * 3


class Forward(nn.Module):
    """A few modules, and any forward that uses them."""

    def __init__(self, forward: Callable[..., object]) -> None:
        super().__init__()
        self.conv1, self.relu, self.conv2 = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)
        self.both = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.pair = Pair()
        self._forward = forward

    def forward(self, x: Tensor) -> object:
        return self._forward(self, x)


def forward(function: Callable[..., object]) -> Callable[[], nn.Module]:
    return lambda: Forward(function)


def added(net: Forward, x: Tensor) -> Tensor:
    left, right = net.pair(net.conv1(x))
    return left + right


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_the_working_taps_of_a_resnet():
    network = torchvision.models.resnet18(num_classes=2)
    blocks = [path for layer in "1234" for path in (f"layer{layer}.0", f"layer{layer}")]
    assert working_taps(network) == ["conv1", "bn1", "relu", "maxpool", *blocks, "avgpool"]


def test_a_path_inside_a_block_is_refused_and_the_nearest_are_named():
    network = torchvision.models.resnet18(num_classes=2)
    with pytest.raises(InputError) as caught:
        cut(network, {"inner": "layer1.0.conv1"})
    assert str(caught.value) == (
        "taps.inner: more than one value crosses behind 'layer1.0.conv1' (also: maxpool); "
        "the nearest taps that work: bn1, relu, maxpool, layer1.0, layer1, layer2.0"
    )
    for path in ("layer2.0.downsample", "layer3.1.bn2", "layer2.0.bn2"):
        with pytest.raises(InputError, match="more than one value crosses"):
            cut(network, {"inner": path})


def test_a_module_with_weights_is_called_in_one_stage_alone():
    assert working_taps(Halved()) == ["stem", "shared", "last"]
    with pytest.raises(InputError, match=r"also: the weights of shared.*work: stem, shared, last"):
        cut(Halved(), {"a": "between"})


CHAIN = forward(lambda net, x: net.both(net.conv1(x)).mean((2, 3)))
REFUSED: list[tuple[Callable[[], nn.Module], dict[str, str], str]] = [
    (
        lambda: plain_conv_net(5),
        {"a": "norm9"},
        r"taps\.a: the network has no module 'norm9'. Similar paths: norm",
    ),
    (lambda: plain_conv_net(5), {"scores": "norm1"}, r"taps\.scores: a tap cannot have this name"),
    (lambda: plain_conv_net(5), {"a.b": "norm1"}, r"taps\.a\.b: a tap cannot have this name"),
    (lambda: plain_conv_net(5), {"keys": "norm1"}, r"taps\.keys: a tap cannot have this name"),
    (lambda: plain_conv_net(5), {"a": "head"}, r"taps\.a: 'head' gives the scores; the nearest"),
    (CHAIN, {"a": "conv2"}, r"taps\.a: the network never calls 'conv2'; .* work: conv1, both\.0, both$"),
    (CHAIN, {"a": "both.1", "b": "both"}, r"taps\.b: 'both' gives the same value as taps\.a, 'both\.1'"),
    (forward(added), {"a": "pair"}, r"'pair' does not give one tensor"),
    (forward(lambda net, x: (x, net.conv1(x))), {}, r"gives a tuple, not one tensor of scores"),
    (forward(lambda net, x: (net.relu(x), net.conv1(x))[1]), {}, r"relu changes its input in place"),
    (
        forward(lambda net, x: (net.conv2(x), net.both(net.conv1(x)))[1]),
        {"a": "conv2"},
        r"taps\.a: 'conv2' leads not from image to scores; .* work: conv1",
    ),
    (
        forward(lambda net, x: net.conv1(x) * net.conv2(x)),
        {"a": "conv1"},
        r"behind 'conv1' \(also: the image\); the nearest taps that work: none",
    ),
    (Branching, {}, r"student\.network: torch\.fx cannot trace it \(symbolically traced.*\); "),
    (forward(lambda net, x: net.conv1.bias * 2), {}, r"its scores do not depend on the image"),
    (TwoInputs, {}, r"student\.network: takes 'y' besides the image"),
]


@pytest.mark.parametrize(("make", "paths", "said"), REFUSED)
def test_what_cannot_be_cut_is_refused(make, paths, said):
    network = make()
    with pytest.raises(InputError, match=said):
        cut(network, paths)
    assert all(module.training for module in network.modules())


def test_evaluating_restores_every_mode_after_an_error():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout().eval())
    with pytest.raises(ValueError, match="input"), evaluating(network):
        network(torch.zeros(3))
    assert [module.training for module in network.modules()] == [True, True, False]


def test_modules_with_tied_weights_are_in_one_stage_alone():
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
        cut(network, {"middle": "first"})
