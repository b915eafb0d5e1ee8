"""Test that groups of channels can be permuted without changing what a network computes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.errors import InputError
from ka_ray.student import channel_groups
from ka_ray.student.channel_groups import ChannelGroups, find_channel_groups, permute_channels

sys.path.append(str(Path(__file__).parents[1] / "teachers"))
from resnet20 import resnet20


def timm_model(name: str, **arguments: object) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=7, **arguments)


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=7)


def small_timm_vit() -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm_model("vit_tiny_patch16_224", **sizes)


def small_convnext() -> nn.Module:
    setting = torchvision.models.convnext.CNBlockConfig
    blocks = [setting(8, 12, 1), setting(12, None, 1)]
    return torchvision.models.ConvNeXt(blocks, num_classes=7)


def small_bottleneck() -> nn.Module:
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(block, [1, 2, 1, 1], num_classes=7)


def small_vgg() -> nn.Module:
    features = torchvision.models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
    head = (nn.Linear(16 * 16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 7))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(4), nn.Flatten(), *head)


def small_dense_net() -> nn.Module:
    return torchvision.models.DenseNet(4, (2, 3), 8, num_classes=7)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), 32),
    "bottleneck": (small_bottleneck, 32),
    "timm_resnet": (lambda: timm_model("test_resnet"), 32),
    "timm_se_resnet": (lambda: timm_model("legacy_seresnet18"), 32),
    "cifar_resnet20": (resnet20, 32),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=7), 32),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=7), 32),
    "efficientnet": (lambda: torchvision.models.efficientnet_b0(num_classes=7), 32),
    "timm_efficientnet": (lambda: timm_model("test_efficientnet"), 32),
    "timm_lite": (lambda: timm_model("tf_efficientnet_lite0"), 32),
    "timm_nfnet": (lambda: timm_model("test_nfnet"), 32),
    "timm_convnext": (lambda: timm_model("test_convnext"), 32),
    "convnext": (small_convnext, 32),
    "vgg": (small_vgg, 32),
    "densenet": (small_dense_net, 32),
    "vit": (small_vit, 32),
    "timm_vit": (small_timm_vit, 32),
    "regnet": (lambda: torchvision.models.regnet_y_400mf(num_classes=7), 32),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=7), 32),
}
"""Networks, and the size of their images."""


def random_network(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network in float64 in which no weight and no statistic is zero or equal for all channels."""
    network = build().double().eval()
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network


def random_images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64)


def random_orders(groups: ChannelGroups) -> dict[int, Tensor]:
    """Return an order of each group that is not fixed; it moves every channel."""
    return {
        index: torch.roll(torch.randperm(group.width), 1)
        for index, group in enumerate(groups.groups)
        if not group.fixed
    }


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_network_with_permuted_groups_computes_the_same(name, monkeypatch):
    # The search has the same check; without it, this test is the only judge.
    monkeypatch.setattr(channel_groups, "check_channel_groups", lambda *_: None)
    build, size = NETWORKS[name]
    network, images = random_network(build), random_images(size)
    expected, before = network(images), network.state_dict()
    groups = find_channel_groups(network, images)
    orders = random_orders(groups)
    after = permute_channels(before, groups, orders)
    for index in orders:
        group = groups.groups[index]
        moved = permute_channels(before, groups, {index: torch.arange(group.width).roll(1)})
        assert group.width == 1 or all(
            not torch.equal(moved[place.name], before[place.name]) for place in group.weights
        )
    network.load_state_dict(after)
    torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)


def free_widths(network: nn.Module, size: int) -> list[int]:
    return [
        group.width for group in find_channel_groups(network, random_images(size)).groups if not group.fixed
    ]


def test_the_groups_of_a_resnet_are_its_streams_and_the_inside_of_its_blocks():
    # Two blocks a stage. The first stage's stream is the stem's.
    stages = [[64, 64, 64], [128, 128, 128], [256, 256, 256], [512, 512, 512]]
    widths = free_widths(random_network(lambda: torchvision.models.resnet18(num_classes=7)), 32)
    assert sorted(widths) == sorted(width for stage in stages for width in stage)


def test_shortcuts_that_pad_channels_divide_a_stream():
    # 16 channels reach the end of the network from the stem; 8 + 8 and 16 + 16 are padding before the blocks.
    inside = [16] * 3 + [32] * 3 + [64] * 3
    assert sorted(free_widths(random_network(resnet20), 32)) == sorted([*inside, 16, 8, 8, 16, 16])


def test_inside_an_efficientnet_block_expansion_depthwise_conv_and_excitation_are_one_group():
    network = random_network(lambda: torchvision.models.efficientnet_b0(num_classes=7))
    groups = find_channel_groups(network, random_images(32))
    block = "features.2.0.block"
    (hidden,) = (g for g in groups.groups if f"{block}.0.0.weight" in {p.name for p in g.weights[:1]})
    places = {(place.name, place.axis) for place in hidden.weights}
    assert hidden.width == 96
    assert {(f"{block}.1.0.weight", 0), (f"{block}.2.fc1.weight", 1), (f"{block}.2.fc2.weight", 0)} < places
    assert (f"{block}.3.0.weight", 1) in places
    assert hidden.operations == {"activation", "depthwise", "product"}
    (squeezed,) = (g for g in groups.groups if g.weights[0].name == f"{block}.2.fc1.weight")
    assert squeezed.width == 4


def test_residual_streams_of_mobilenet_are_linear_those_of_resnet_are_not():
    def streams(network: nn.Module) -> list[bool]:
        found = find_channel_groups(network, random_images(32))
        added = {name for name, rule in found.rules.items() if rule == "add"}
        return [g.is_linear for g in found.groups if added & {place.name for place in g.values}]

    assert all(streams(random_network(lambda: torchvision.models.mobilenet_v2(num_classes=7))))
    assert not any(streams(random_network(lambda: torchvision.models.resnet18(num_classes=7))))


def test_flattened_channels_are_adjacent_inputs_of_the_linear_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 7))
    group = find_channel_groups(random_network(lambda: network), random_images(5)).groups[1]
    assert {(p.name, p.axis, p.offset, p.repeat) for p in group.weights} == {
        ("0.weight", 0, 0, 1),
        ("0.bias", 0, 0, 1),
        ("3.weight", 1, 0, 9),
    }


def test_channels_of_the_image_and_scores_are_fixed():
    groups = find_channel_groups(random_network(small_vit), random_images(32)).groups
    fixed = {(place.name, place.axis) for group in groups if group.fixed for place in group.weights}
    assert {("conv_proj.weight", 1), ("heads.head.weight", 0), ("heads.head.bias", 0)} <= fixed


class Unusual(nn.Module):
    """Does something to its channels that depends on their order, in a way that is given."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.mix = nn.Linear(8, 7), mix

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.mix(self.first(images)))
        return self.head(functional.relu(features).mean((2, 3)))


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda x: x.cumsum(1),
    "flip": lambda x: x.flip(1),
    "add_flipped": lambda x: x + x.flip(1),
    "group_norm": lambda x: functional.group_norm(x, 4),
    "shuffle": lambda x: x.reshape(2, 2, 4, 7, 7).transpose(1, 2).flatten(1, 2),
    "softmax": lambda x: x.softmax(1),
    "every_second": lambda x: x[:, ::2].repeat_interleave(2, 1),
    "one_channel": lambda x: x * x[:, 3:4, :, :] + x[:, 2].unsqueeze(1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_channels_whose_order_matters_are_fixed_and_others_are_not(name):
    network = random_network(lambda: Unusual(UNKNOWN[name]))
    groups = find_channel_groups(network, random_images(9))
    of_weight = {(place.name, place.axis): group for group in groups.groups for place in group.weights}
    assert not of_weight["second.weight", 0].fixed
    if name != "one_channel":
        assert of_weight["first.weight", 0].fixed


def test_channels_that_are_divided_and_joined_keep_their_own_orders():
    def swap(x: Tensor) -> Tensor:
        left, right = x.split([3, 5], 1)
        return torch.cat([right, functional.relu(left)], 1)

    network = random_network(lambda: Unusual(swap))
    groups = find_channel_groups(network, random_images(9))
    found = {(p.name, p.axis, p.offset): g.width for g in groups.groups for p in g.weights if not g.fixed}
    assert found["first.weight", 0, 0] == found["second.weight", 1, 5] == 3
    assert found["first.weight", 0, 3] == found["second.weight", 1, 0] == 5


class Scaled(nn.Module):
    """Divides scores by a learned temperature, and reads weights without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(6, 3, 1, 1)), nn.Parameter(torch.randn(6, 1, 1))
        self.log_temperature, self.head = nn.Parameter(torch.randn(())), nn.Linear(6, 7)

    def forward(self, images: Tensor) -> Tensor:
        features = 1 - functional.conv2d(images, self.weight) * self.shift
        return self.head(features.amax((2, 3)) + features.mean((2, 3))) / self.log_temperature.exp()


def test_weights_that_are_read_without_a_module_are_found():
    network = random_network(Scaled)
    before = {
        (p.name, p.axis) for g in find_channel_groups(network, random_images(4)).groups for p in g.weights
    }
    assert {("weight", 0), ("shift", 0), ("head.weight", 1)} < before


def test_tied_weights_are_permuted_together():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Flatten()
    )
    network[3].weight = network[1].weight
    network.append(nn.Linear(6 * 16, 7))
    network = random_network(lambda: network)
    images = random_images(4)
    groups = find_channel_groups(network, images)
    assert [group.width for group in groups.groups if not group.fixed] == [6]


def test_a_rule_that_is_wrong_is_noticed(monkeypatch):
    from ka_ray.student.channel_graph import _RULES
    from ka_ray.student.channel_rules import apply_same

    monkeypatch.setitem(_RULES, "cumsum", apply_same)
    with pytest.raises(InputError, match="order of the network's channels"):
        find_channel_groups(random_network(lambda: Unusual(UNKNOWN["cumsum"])), random_images(9))


def test_a_fixed_group_cannot_be_permuted():
    network = random_network(resnet20)
    groups = find_channel_groups(network, random_images(32))
    with pytest.raises(ValueError, match="fixed"):
        permute_channels(network.state_dict(), groups, {0: torch.tensor([1, 0, 2])})
