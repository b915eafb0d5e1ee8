"""Test how networks are divided into blocks: by hand-made lists, and whole or cut by torch.fx alike."""

from collections import OrderedDict

import pytest
import timm
import torchvision
from torch import nn

from ka_ray.student.cut import cut_into_stages
from ka_ray.training.blocks import find_blocks


def layers_of_blocks(network: nn.Module) -> list[set[str]]:
    """Return the modules whose parameters are in each block."""
    return [{name.rpartition(".")[0] for name in names} for names in find_blocks(network)]


def test_without_blocks_every_layer_is_one_together_with_its_norm():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.GroupNorm(2, 4),
        nn.Linear(4, 2),
    )
    assert layers_of_blocks(network) == [{"0", "1"}, {"3", "4"}, {"5"}]


def test_a_resnet_has_a_stem_its_residual_blocks_and_a_head():
    blocks = layers_of_blocks(torchvision.models.resnet18(num_classes=3))
    numbers = [(layer, block) for layer in (1, 2, 3, 4) for block in (0, 1)]
    assert len(blocks) == 10
    assert blocks[0] == {"conv1", "bn1"}
    assert blocks[-1] == {"fc"}
    for found, (layer, block) in zip(blocks[1:-1], numbers, strict=True):
        names = {"conv1", "bn1", "conv2", "bn2"}
        names |= {"downsample.0", "downsample.1"} if layer > 1 and block == 0 else set()
        assert found == {f"layer{layer}.{block}.{name}" for name in names}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # A network's stem, its blocks, the last conv if there is one, and the layer of the scores.
        (lambda: torchvision.models.mobilenet_v2(num_classes=3), 1 + 17 + 1 + 1),
        (lambda: torchvision.models.efficientnet_b0(num_classes=3), 1 + 16 + 1 + 1),
        (lambda: torchvision.models.vgg11_bn(num_classes=3), 8 + 3),
        (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=3), 1 + 16 + 1 + 1),
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3), 1 + 12 + 1),
        # Three of Swin's and ConvNeXt's four stages begin with a layer that halves the map.
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=3), 1 + 12 + 3 + 1),
        (lambda: timm.create_model("convnext_atto", num_classes=3), 1 + 12 + 3 + 1),
    ],
    ids=["mobilenet_v2", "efficientnet_b0", "vgg11_bn", "efficientnet_lite0", "vit", "swin", "convnext"],
)
def test_networks_have_as_many_blocks_as_their_papers_say(build, expected):
    network = build()
    blocks = find_blocks(network)
    assert len(blocks) == expected
    assert sorted(name for names in blocks for name in names) == sorted(
        name for name, _ in network.named_parameters()
    )
    # A backbone with a head of its own, and a module around it, change nothing but the names.
    wrapped = nn.Sequential(nn.Identity(), nn.Sequential(network))
    assert find_blocks(wrapped) == [[f"1.0.{name}" for name in names] for names in blocks]


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("tf_efficientnet_lite0", {"early": "blocks.2", "tap_2": "blocks.4.1"}),
        ("resnet18", {"tap1": "layer2", "tap2": "layer3.0"}),
        ("vit_tiny_patch16_224", {"middle": "blocks.5"}),
    ],
)
def test_a_network_that_is_cut_at_taps_has_the_same_blocks(name, paths):
    network = timm.create_model(name, num_classes=3)
    expected = layers_of_blocks(network)
    stages = cut_into_stages(network, paths)
    found = [
        {layer.split(".", 1)[1] if "." in layer else "" for layer in block}
        for block in layers_of_blocks(stages)
    ]
    assert found == expected


def test_frozen_parameters_and_buffers_are_in_no_block():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    network[0].requires_grad_(False)
    assert find_blocks(network) == [["1.weight", "1.bias"], ["2.weight", "2.bias"]]


def test_a_sequence_of_a_backbone_and_a_head_is_divided_like_the_backbone():
    backbone = torchvision.models.vgg11_bn(num_classes=3).features
    network = nn.Sequential(nn.Sequential(OrderedDict(features=backbone)), nn.Linear(512, 3))
    assert len(find_blocks(network)) == 8 + 1


def test_a_plain_sequence_of_residual_blocks_has_one_block_each():
    def build_block() -> nn.Module:
        return nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 3), conv2=nn.Conv2d(4, 4, 3)))

    network = nn.Sequential(nn.Conv2d(3, 4, 3), build_block(), build_block(), nn.Linear(4, 2))
    assert layers_of_blocks(network) == [{"0"}, {"1.conv1", "1.conv2"}, {"2.conv1", "2.conv2"}, {"3"}]
