"""Test that a network gets other widths: shapes, scores, what it keeps, and what is refused."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.student.resized import WidthGroup, find_width_groups, resize_network

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block whose inner conv may be wider than its stream."""

    def __init__(self, stream: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(stream, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, stream, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(features + self.conv2(torch.relu(self.norm1(self.conv1(features)))))


class SmallResNet(nn.Module):
    def __init__(self, stream: int, inner: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(stream, width) for width in inner))
        self.head = nn.Linear(stream, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


class Concatenated(nn.Module):
    """Two branches side by side, a flattened map, and a layer norm."""

    def __init__(self, left: int, right: int, hidden: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, left, 8, 8), nn.Conv2d(3, right, 8, 8)
        self.norm = nn.BatchNorm2d(left + right)
        self.hidden = nn.Linear((left + right) * 16, hidden)
        self.layer_norm, self.prelu = nn.LayerNorm(hidden), nn.PReLU(hidden)
        self.head = nn.Linear(hidden, 4)

    def forward(self, images: Tensor) -> Tensor:
        joined = self.norm(torch.cat([self.left(images), self.right(images)], dim=1))
        return self.head(self.prelu(self.layer_norm(self.hidden(joined.flatten(1)))))


def small_timm_resnet(channels: tuple[int, ...]) -> nn.Module:
    # Squeeze-and-excitation in each of four bottleneck blocks.
    return timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck,
        (1, 1, 1, 1),
        num_classes=3,
        stem_width=channels[0],
        channels=channels,
        block_args={"attn_layer": "se"},
    )


def build_chain(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, first, 3), nn.ReLU(), nn.GroupNorm(first, first), nn.Conv2d(first, second, 3),
        nn.GroupNorm(1, second), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(second * 4, 5),
    )  # fmt: skip


PAIRS = {
    "residual": (lambda: SmallResNet(6, (6, 8)), lambda: SmallResNet(9, (4, 8))),
    "concatenation": (lambda: Concatenated(4, 6, 10), lambda: Concatenated(5, 3, 7)),
    "mobilenet": (
        lambda: torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.5),
        lambda: torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.75),
    ),
    "timm resnet": (
        lambda: small_timm_resnet((24, 32, 64, 64)),
        lambda: small_timm_resnet((32, 48, 80, 96)),
    ),
    "chain": (lambda: build_chain(4, 6), lambda: build_chain(7, 3)),
}


def widths_of(network: nn.Module, groups: tuple[WidthGroup, ...]) -> dict[str, int]:
    """Return the widths of a network's groups, read off its layers."""
    return {group.name: len(network.get_submodule(group.name).weight) for group in groups}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_resized_network_is_the_one_that_was_built_with_these_widths(kind, randomised):
    build, build_expected = PAIRS[kind]
    network, expected = build(), randomised(build_expected())
    groups = find_width_groups(network, IMAGES)
    assert {path for group in groups for path in group.paths} | {"head", "classifier.1", "fc", "7"} >= {
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    resize_network(network, groups, widths_of(expected, groups), IMAGES)
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in network.state_dict().items()} == shapes
    assert [repr(m) for m in network.modules() if not [*m.children()]] == [
        repr(m) for m in expected.modules() if not [*m.children()]
    ]
    network.load_state_dict(expected.state_dict())
    torch.testing.assert_close(network.eval()(IMAGES), expected.eval()(IMAGES))


def test_groups_that_are_not_named_keep_their_width_and_their_weights():
    network = SmallResNet(6, (6, 8))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    groups = find_width_groups(network, IMAGES)
    assert [(group.paths, group.width) for group in groups] == [
        (("stem", "blocks.0.conv2", "blocks.1.conv2"), 6),
        (("blocks.0.conv1",), 6),
        (("blocks.1.conv1",), 8),
    ]
    resize_network(network, groups, {"blocks.1.conv1": 3}, IMAGES)
    after = network.state_dict()
    changed = {key for key in before if before[key].shape != after[key].shape}
    assert {key.rpartition(".")[0] for key in changed} == {
        "blocks.1.conv1",
        "blocks.1.norm1",
        "blocks.1.conv2",
    }
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - changed)
    assert after["blocks.1.norm1.weight"].equal(torch.ones(3))


def test_new_weights_have_the_distribution_of_the_old_ones():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 400, bias=False), nn.ReLU(), nn.Linear(400, 300), nn.Linear(300, 2))
    images, spread = torch.randn(2, 3), float(network[2].weight.detach().std())
    groups = find_width_groups(network, images)
    resize_network(network, groups, {"0": 100}, images)
    # With a quarter of the inputs, twice the spread keeps the variance of the outputs.
    assert float(network[2].weight.detach().std()) == pytest.approx(2 * spread, rel=0.05)


def test_a_weight_that_two_layers_share_stays_shared():
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    network[3].weight = network[2].weight
    images = torch.randn(2, 3)
    groups = find_width_groups(network, images)
    resize_network(network, groups, {groups[0].name: 9}, images)
    assert network[3].weight is network[2].weight
    assert network[2].weight.shape == (9, 9)


class CountsOnItsWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).mean(dim=(2, 3)).reshape(-1, 8))


def test_a_network_that_counts_on_its_own_width_is_refused_by_name():
    network = CountsOnItsWidth()
    groups = find_width_groups(network, IMAGES)
    with pytest.raises(InputError, match="CountsOnItsWidth does not work with other widths"):
        resize_network(network, groups, {"conv": 5}, IMAGES)


def test_channels_whose_order_matters_are_no_group():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    groups = find_width_groups(network, IMAGES)
    assert [group.paths for group in groups] == [("2",)]
    with pytest.raises(InputError, match="'1' is no layer whose width can be changed"):
        resize_network(network, groups, {"1": 4}, IMAGES)
