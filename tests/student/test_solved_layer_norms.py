"""Test what a solved student does about layer norms, layer scales, attention heads and class tokens."""

import pytest
import timm.models.vision_transformer
import torch
import torchvision
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.student.block_solver import check_solvable
from ka_ray.student.channel_codes import choice_of_channels
from ka_ray.student.channel_groups import find_channel_groups
from ka_ray.student.graph_nodes import keeps_order
from ka_ray.student.layer_norms import find_layer_norms, move_into_readers
from ka_ray.student.solvable_layers import find_layers
from ka_ray.student.stacked_networks import StackedNetworks
from ka_ray.student.trace import trace_network


def build_vit(classes: int = 5, **options) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
    return timm.models.vision_transformer.VisionTransformer(num_classes=classes, **sizes, **options).eval()


class Normed(nn.Module):
    """Layer norms in front of a conv, of a linear layer behind pooling, and of a value that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.added, self.first, self.last = (nn.GroupNorm(1, 6) for _ in range(3))
        self.down, self.head = nn.Conv2d(6, 6, 2, 2), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = features + self.added(features)
        features = self.down(self.first(features))
        return self.head(self.last(features).mean((2, 3)))


def draw_weights(network: nn.Module) -> nn.Module:
    for weight in network.parameters():
        nn.init.normal_(weight)
    return network.eval()


def test_moved_weights_of_norms_leave_the_scores_and_others_stay():
    network = draw_weights(Normed()).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = find_channel_groups(network, images)
    layers = {
        layer.between[0] if layer.between else layer.output: layer
        for layer in find_layers(network, found.graph)
    }
    norms = {use.path: use for use in find_layer_norms(network, found, layers).values()}
    assert {path: use.readers for path, use in norms.items()} == {
        "added": None,
        "first": ("down",),
        "last": ("head",),
    }
    before = network(images)
    for path in ("first", "last"):
        move_into_readers(norms[path], network)
        norm = network.get_submodule(path)
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
    torch.testing.assert_close(network(images), before)


def test_heads_of_an_attention_layer_are_the_channels_of_a_group():
    groups = find_channel_groups(build_vit(), torch.zeros(2, 3, 8, 8)).groups
    (heads,) = (group for group in groups if "attention" in group.operations)
    assert (heads.width, heads.fixed) == (3, False)
    # Queries, keys and values of a head have 4 features each.
    places = {(p.name, p.axis, p.offset, p.repeat) for p in heads.weights}
    assert places == {("blocks.0.attn.proj.weight", 1, 0, 4)} | {
        (f"blocks.0.attn.qkv.{name}", 0, offset, 4) for name in ("weight", "bias") for offset in (0, 12, 24)
    }


def test_the_code_of_chosen_heads_has_their_queries_keys_and_values():
    networks = StackedNetworks(build_vit(), {"a": build_vit(3), "b": build_vit(2)}, torch.zeros(2, 3, 8, 8))
    (node,) = (node for node in networks.graph.nodes if node.name == "blocks_0_attn_qkv")
    # Head 1 of the first teacher, heads 0 and 2 of the second one.
    code = networks.encode(node, choice_of_channels([1, 3, 5], 6), torch.arange(72.0))
    own = torch.arange(36.0).view(3, 3, 4)
    expected = torch.stack([own[:, 1], 36 + own[:, 0], 36 + own[:, 2]], dim=1)
    assert code.equal(expected.flatten())


@pytest.mark.parametrize(
    ("dims", "expected"),
    [((0, 2, 3, 1), True), ((0, 3, 1, 2), True), ((0, 1, 3, 2), True), ((0, 3, 2, 1), False)],
)
def test_positions_keep_their_order_where_one_axis_moves(dims, expected):
    network = torchvision.ops.Permute(list(dims))
    graph, _ = trace_network(nn.Sequential(network))
    (node,) = (node for node in graph.nodes if node.op == "call_module")
    assert keeps_order(nn.Sequential(network), node) is expected


class Scaled(nn.Module):
    """Scales a stream, and not the output of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.scale = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images.mean((2, 3)))
        return self.head(features.relu() * self.scale + features)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (build_vit(qk_norm=True), "solve the weight 'blocks.0.attn.q_norm.weight'"),
        (build_vit(qkv_bias=False), "'blocks.0.attn.qkv' of the student's network has neither a bias"),
        (torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=5), "solve the weight 'encoder"),
        (Scaled(), "solve the weight 'scale'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(network, message):
    with pytest.raises(InputError, match=message):
        check_solvable(network.eval(), [], torch.randn(2, 3, 8, 8))
