"""Test that folding an adapter is exact where it is possible, and refused elsewhere."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ka_ray.student.adapter import Adapter
from ka_ray.student.cut import cut_into_stages
from ka_ray.student.fold import can_fold, fold_adapter

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


class Sum(nn.Module):
    """Adds the outputs of two branches."""

    def __init__(self, left: nn.Module, right: nn.Module, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.add = left, right, add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.left(x), self.right(x))


def make_conv(bias: bool = True, **others: int) -> nn.Conv2d:
    return nn.Conv2d(3, 6, 3, padding=1, bias=bias, **others)


def make_conv_and_norm(bias: bool = False, eps: float = 1e-3) -> nn.Sequential:
    return nn.Sequential(make_conv(bias), nn.BatchNorm2d(6, eps=eps))


def make_sum(left: nn.Module, right: nn.Module, add: Callable[[Tensor, Tensor], Tensor] = torch.add) -> Sum:
    return Sum(left, right, add)


def make_downsampling_block() -> nn.Module:
    """Build a ResNet block with a 1x1 conv as shortcut, without its last ReLU."""
    block = torchvision.models.resnet18(num_classes=2).layer2[0]
    conv1 = nn.Conv2d(3, 64, 1)
    inner = nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)
    return nn.Sequential(conv1, make_sum(inner, block.downsample, lambda a, b: a.add_(b)))


MAP_SHAPE, VECTOR_SHAPE = (4, 3, 8, 8), (4, 5)
STAGES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Sequential(nn.ReLU(), make_conv()), MAP_SHAPE),
    "bare conv": (make_conv, MAP_SHAPE),
    "strided conv": (lambda: nn.Sequential(make_conv(stride=2)), MAP_SHAPE),
    "1x1 conv": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1)), MAP_SHAPE),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), MAP_SHAPE),
    "bare linear": (lambda: nn.Linear(5, 6), VECTOR_SHAPE),
    "conv and norm": (make_conv_and_norm, MAP_SHAPE),
    "conv with bias and norm": (lambda: make_conv_and_norm(bias=True), MAP_SHAPE),
    "linear and norm": (lambda: nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6)), VECTOR_SHAPE),
    "linear with bias and norm": (lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)), VECTOR_SHAPE),
    "dropout that drops nothing": (
        lambda: nn.Sequential(make_conv_and_norm(), nn.Dropout(0.0), nn.Identity()),
        MAP_SHAPE,
    ),
    "stochastic depth that drops nothing": (
        lambda: nn.Sequential(make_conv(), torchvision.ops.StochasticDepth(0.0, "row")),
        MAP_SHAPE,
    ),
    "sum": (lambda: make_sum(make_conv(), make_conv()), MAP_SHAPE),
    "sum of norms": (
        lambda: make_sum(make_conv_and_norm(), make_conv_and_norm(bias=True), lambda a, b: a + b),
        MAP_SHAPE,
    ),
    "sum without a bias left": (
        lambda: make_sum(make_conv(bias=False), make_conv_and_norm(), lambda a, b: a.add(b)),
        MAP_SHAPE,
    ),
    "sum without a bias right": (lambda: make_sum(make_conv(), make_conv(bias=False)), MAP_SHAPE),
    "sum of sums": (
        lambda: make_sum(make_sum(make_conv(), make_conv_and_norm()), make_conv(bias=False)),
        MAP_SHAPE,
    ),
    "block of a ResNet before its ReLU": (make_downsampling_block, MAP_SHAPE),
    "conv called by keyword": (lambda: CallsConvByKeyword(), MAP_SHAPE),
}


class CallsConvByKeyword(nn.Module):
    """Calls its conv by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = make_conv(), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(input=x))


class UsesLayerTwice(nn.Module):
    """A conv and a batch norm whose forward pass is a given function, which uses one of them twice."""

    def __init__(self, forward: Callable[["UsesLayerTwice", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


NOT_FOLDABLE: dict[str, Callable[[], nn.Module]] = {
    "no bias": lambda: make_conv(bias=False),
    "linear without bias": lambda: nn.Linear(5, 6, bias=False),
    "activation": lambda: nn.Sequential(make_conv(), nn.ReLU()),
    "pooling": lambda: nn.Sequential(make_conv(), nn.AvgPool2d(2)),
    "depthwise conv": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "depthwise conv and norm": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
    "dropout": lambda: nn.Sequential(make_conv(), nn.Dropout(0.1)),
    "norm without a layer": lambda: nn.BatchNorm2d(3),
    "norm after an activation": lambda: nn.Sequential(make_conv(), nn.ReLU(), nn.BatchNorm2d(6)),
    "norm without weights": lambda: nn.Sequential(make_conv(), nn.BatchNorm2d(6, affine=False)),
    "norm without statistics": lambda: nn.Sequential(
        make_conv(), nn.BatchNorm2d(6, track_running_stats=False)
    ),
    "instance norm": lambda: nn.Sequential(make_conv(), nn.InstanceNorm2d(6, affine=True)),
    "identity shortcut": lambda: make_sum(nn.Conv2d(3, 3, 1), nn.Identity()),
    "branch with activation": lambda: make_sum(make_conv(), nn.Sequential(make_conv(), nn.ReLU())),
    "sum without any bias": lambda: make_sum(make_conv(bias=False), make_conv(bias=False)),
    "sum of different widths": lambda: make_sum(nn.Conv2d(3, 1, 1), nn.Conv2d(3, 6, 1)),
    "weighted sum": lambda: make_sum(make_conv(), make_conv(), lambda a, b: torch.add(a, b, alpha=2)),
    "difference": lambda: make_sum(make_conv(), make_conv(), lambda a, b: a - b),
    "sum with a number": lambda: make_sum(make_conv(), make_conv(), lambda a, b: a + 1),
    "sum of a branch with itself": lambda: make_sum(make_conv(), make_conv(), lambda a, b: a + a),
    "branch that is also used elsewhere": lambda: make_sum(
        make_conv(), make_conv(), lambda a, b: a + (a * b)
    ),
    "layer called twice": lambda: UsesLayerTwice(lambda net, x: net.conv(net.conv(x))),
    "norm called twice": lambda: UsesLayerTwice(lambda net, x: net.norm(net.conv(net.norm(x)))),
    "weight used twice": lambda: UsesLayerTwice(lambda net, x: net.conv(x * net.conv.weight.sum())),
}


def make_random_adapter(channels: int) -> Adapter:
    adapter = Adapter(channels)
    nn.init.normal_(adapter.linear.weight, std=channels**-0.5)
    nn.init.normal_(adapter.linear.bias)
    return adapter


def assert_folding_is_exact(stage: nn.Module, features: Tensor) -> None:
    """Assert that a stage with a folded random adapter computes the same as stage and adapter in turn."""
    before, adapter = copy.deepcopy(stage), make_random_adapter(stage(features).shape[1]).to(features.dtype)
    expected = adapter(before(features))
    assert can_fold(stage)
    fold_adapter(adapter, stage)
    assert stage(features).dtype == features.dtype
    difference = (stage(features) - expected).abs().max()
    assert difference <= TOLERANCE[features.dtype] * max(1.0, float(expected.abs().max()))
    assert (expected - before(features)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_a_folded_stage_computes_the_same_as_stage_and_adapter(randomised, name, dtype):
    make, shape = STAGES[name]
    assert_folding_is_exact(randomised(make()).to(dtype), torch.randn(shape, dtype=dtype))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], tuple[str, ...]]] = {
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=2),
        ("bn1",),
        ("layer1", "layer2", "layer3", "layer4", "avgpool"),
    ),
    "mobilenet_v3_small": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=2),
        tuple(f"features.{i}" for i in (1, 2, 4, 7, 9)),
        tuple(f"features.{i}" for i in (0, 3, 5, 6, 8, 10, 11, 12)),
    ),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_adapters_are_folded_exactly_into_the_foldable_stages_of_a_network(randomised, name, dtype):
    make, foldable, not_foldable = NETWORKS[name]
    network = randomised(make()).to(dtype)
    stages = cut_into_stages(network, {path.replace(".", "_"): path for path in (*foldable, *not_foldable)})
    features = torch.randn(2, 3, 64, 64, dtype=dtype)
    for tap, stage in stages.items():
        if tap in [path.replace(".", "_") for path in foldable]:
            assert_folding_is_exact(stage, features)
        elif tap != "scores":
            assert not can_fold(stage)
        features = stage(features)
        features = features / features.std()


@pytest.mark.parametrize("name", NOT_FOLDABLE)
def test_a_stage_that_cannot_be_folded_is_refused_and_not_changed(name):
    stage = NOT_FOLDABLE[name]()
    before = copy.deepcopy(stage.state_dict())
    assert not can_fold(stage)
    with pytest.raises(ValueError, match="bias or a batch norm"):
        fold_adapter(make_random_adapter(6), stage)
    assert all(torch.equal(value, before[key]) for key, value in stage.state_dict().items())
    assert all(module.training for module in stage.modules())


def test_an_adapter_of_another_width_is_refused():
    stage = make_conv_and_norm()
    before = copy.deepcopy(stage.state_dict())
    with pytest.raises(ValueError, match="the adapter has 5 channels, but the stage has 6 output channels"):
        fold_adapter(make_random_adapter(5), stage)
    assert all(torch.equal(value, before[key]) for key, value in stage.state_dict().items())


def test_folding_an_identity_changes_neither_layer_nor_adapter():
    layer, adapter = make_conv(), Adapter(6)
    before = copy.deepcopy(layer.state_dict())
    fold_adapter(adapter, nn.Sequential(layer))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(adapter.linear.weight, torch.eye(6))


def test_a_folded_batch_norm_only_adds_a_constant(randomised):
    stage = randomised(make_conv_and_norm())
    fold_adapter(make_random_adapter(6), stage)
    norm = stage[1]
    codes = torch.randn(2, 6, 3, 3)
    constant = (norm.bias - norm.running_mean)[:, None, None]
    torch.testing.assert_close(norm(codes), codes + constant)
