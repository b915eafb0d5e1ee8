"""Test that the stages of a network, run one after the other, compute the same as the network."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional

from ka_ray.student.cut import SCORES, cut_into_stages, find_valid_taps
from ka_ray.student.trace import drop_probability_attr
from ka_ray.teachers.plain import plain_conv_net


class ResidualBlock(nn.Module):
    """A residual block: adds in place, and calls one in-place ReLU twice."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(self.relu(self.conv1(x)))
        inner += x
        return self.relu(inner)


class UserNetwork(nn.Module):
    """A network with a bare parameter, the batch size read at the start, and in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.skip = ResidualBlock()
        self.bias = nn.Parameter(torch.randn(4, 1, 1))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.rand(4, 1, 1), persistent=False)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(16, 5)
        self.unused = nn.Linear(2, 2)
        self.pair = ReturnsPair()

    def forward(self, images: Tensor, gain: float = 2.0) -> Tensor:
        batch = images.shape[0]
        x = functional.relu(self.stem(images), inplace=True)
        x = self.skip(x + self.bias * gain)
        x = functional.dropout(x, 0.5, training=self.training)
        left, right = self.pair(self.drop(x))
        x = self.pool((left + right) * self.scale + self.bias)
        return self.head(x.view(batch, -1) + self.bias.new_zeros(batch, 1))


class ReturnsPair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x * 3


RESNET = {"stem": "bn1", "early": "layer1", "middle": "layer2.0", "late": "layer4", "pooled": "avgpool"}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "plain": (lambda: plain_conv_net(5, (4, 6, 8)), {"a": "norm1", "b": "conv2", "c": "norm3"}),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), RESNET),
    "mobilenet_v3_small": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
        {f"block{i}": f"features.{i}" for i in range(13)} | {"head": "classifier.0"},
    ),
    "efficientnet_b0": (
        lambda: torchvision.models.efficientnet_b0(num_classes=5),
        {
            "block0": "features.0",
            "inner": "features.2.0.block.1.0",
            "block3": "features.3",
            "head": "features.8",
        },
    ),
    "user network": (UserNetwork, {"stem": "stem", "skip": "skip", "pool": "pool"}),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def run_in_turn(stages: nn.ModuleDict, features: Tensor) -> Tensor:
    for stage in stages.values():
        features = stage(features)
    return features


def make_images(count: int, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size)


@every_network
@torch.no_grad()
def test_the_stages_compute_the_same_as_the_network(randomised, name):
    make, paths = NETWORKS[name]
    network = randomised(make())
    stages = cut_into_stages(network, paths)
    assert list(stages) == [*paths, SCORES]
    for count in (1, 3):
        batch = make_images(count)
        expected = network(batch)
        assert expected.std() > 0
        assert torch.equal(run_in_turn(stages, batch), expected)


@torch.no_grad()
def test_stages_work_for_any_batch_size():
    class ReshapesByBatchSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 2, 3, stride=2), nn.Linear(18, 5)

        def forward(self, x: Tensor) -> Tensor:
            count, from_shape, from_size = x.size(0), x.shape[0], x.size()[0]
            x = self.conv(x)
            x = x.view(x.size(0), x.shape[1], -1).flatten(1)
            return self.fc(x.view(count, -1)).view(from_shape, -1) + self.fc.bias.new_ones(from_size, 1)

    network = ReshapesByBatchSize().eval()
    stages = cut_into_stages(network, {"conv": "conv"})
    for count in (1, 3):
        batch = make_images(count, 8)
        assert torch.equal(run_in_turn(stages, batch), network(batch))


@every_network
@torch.no_grad()
def test_the_output_of_a_stage_is_the_output_of_its_module(randomised, name):
    make, paths = NETWORKS[name]
    network, outputs = randomised(make()), {}
    for tap, path in paths.items():
        module = network.get_submodule(path)
        module.register_forward_hook(lambda _, __, output, tap=tap: outputs.update({tap: output.clone()}))
    stages, batch = cut_into_stages(network, paths), make_images(2)
    network(batch)
    expected, features = dict(outputs), batch
    for tap, stage in list(stages.items())[:-1]:
        features = stage(features)
        assert torch.equal(features, expected[tap])


@every_network
@torch.no_grad()
def test_a_stage_does_not_change_its_input(randomised, name):
    make, paths = NETWORKS[name]
    features = make_images(2)
    for stage in cut_into_stages(randomised(make()), paths).values():
        before = features.clone()
        output = stage(features)
        assert torch.equal(features, before)
        features = output


@every_network
def test_the_stages_share_the_parameters_of_the_network_and_their_names(name):
    make, paths = NETWORKS[name]
    network = make()
    stages, own = cut_into_stages(network, paths), {}
    for stage in stages.values():
        own |= dict(stage.named_parameters())
    unused = {key for key in dict(network.named_parameters()) if key.startswith("unused")}
    assert own.keys() | unused == dict(network.named_parameters()).keys()
    assert all(value is network.get_parameter(key) for key, value in own.items())
    state, expected = stages.state_dict(), network.state_dict()
    assert {key.partition(".")[2] for key in state} | unused == expected.keys()
    if name != "user network":  # its bias is used on both sides of a tap
        assert sum(v.numel() for v in state.values()) == sum(v.numel() for v in expected.values())


def test_state_dict_keys_of_stages_are_the_tap_followed_by_the_key_in_the_network():
    stages = cut_into_stages(torchvision.models.resnet18(num_classes=2), {"early": "layer1"})
    assert "early.layer1.0.conv1.weight" in stages.state_dict()
    assert "scores.fc.bias" in stages.state_dict()
    assert all(isinstance(stage, fx.GraphModule) for stage in stages.values())


@every_network
def test_gradients_reach_every_parameter(randomised, name):
    make, paths = NETWORKS[name]
    stages = cut_into_stages(randomised(make()).train(), paths)
    run_in_turn(stages, make_images(4)).square().sum().backward()
    assert all(p.grad is not None for p in stages.parameters())


@every_network
def test_stages_keep_the_training_mode_of_each_module(name):
    make, paths = NETWORKS[name]
    network = make().train()
    frozen = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    frozen.eval()
    stages = cut_into_stages(network, paths)
    modes = [module.training for module in network.modules()]
    assert modes.count(False) == 1
    assert not frozen.training
    assert all(stage.training for stage in stages.values())


def test_batch_norms_update_their_statistics_in_training_mode(randomised):
    network = randomised(plain_conv_net(5, (4, 6)))
    stages = cut_into_stages(network, {"a": "norm1"})
    before = network.norm2.running_mean.clone()
    stages.train()
    run_in_turn(stages, make_images(4, 8))
    assert not torch.equal(network.norm2.running_mean, before)


@pytest.mark.parametrize("name", ["efficientnet_b0", "user network"])
def test_stages_have_no_dropout_in_training_mode(name):
    make, paths = NETWORKS[name]
    network = make()
    dropouts = [module for module in network.modules() if drop_probability_attr(module)]
    assert dropouts
    stages = cut_into_stages(network, paths).train()
    assert all(module.p == 0 for module in dropouts)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    batch = make_images(2, 32)
    assert torch.equal(run_in_turn(stages, batch), run_in_turn(stages, batch))


def test_taps_can_be_given_in_any_order():
    paths = dict(reversed(RESNET.items()))
    assert list(cut_into_stages(torchvision.models.resnet18(num_classes=2), paths)) == [*RESNET, SCORES]


def test_a_network_without_taps_is_one_stage():
    network = plain_conv_net(5, (4, 6)).eval()
    stages, batch = cut_into_stages(network, {}), make_images(2, 8)
    assert list(stages) == [SCORES]
    assert torch.equal(stages[SCORES](batch), network(batch))


@every_network
@torch.no_grad()
def test_the_network_can_be_cut_at_all_valid_taps_together(randomised, name):
    network = randomised(NETWORKS[name][0]())
    taps = find_valid_taps(network)
    stages = cut_into_stages(network, {f"tap{i}": path for i, path in enumerate(taps)})
    batch = make_images(2)
    assert list(stages) == [*(f"tap{i}" for i in range(len(taps))), SCORES]
    assert torch.equal(run_in_turn(stages, batch), network(batch))
