"""Find the layer norms of a network that is solved, and move their weights into the layers behind them.

A layer norm normalises the student's own features, whatever their code is. Only its weight and bias have to
be chosen. If nothing but conv and linear layers read its output, those make up for any weight and bias.
Otherwise, as in front of the first block of a ConvNeXt, one regression per channel fits them.

Shapes: C channels of the norm, k values of one channel that a layer reads.
"""

from dataclasses import dataclass

import torch
from torch import fx, nn

from ka_ray.student.channel_groups import ChannelGroups
from ka_ray.student.graph_nodes import get_module, value_users
from ka_ray.student.linear_layers import ConvOrLinear
from ka_ray.student.solvable_layers import SolvableLayer

_MOVES = frozenset({
    *("identity", "dropout", "contiguous", "permute", "transpose", "reshape", "view", "flatten", "squeeze"),
    *("getitem", "mean"),
})  # fmt: skip
"""Operations that leave every channel in its place, apart from means over positions."""


@dataclass(frozen=True)
class LayerNormUse:
    """A layer norm with a weight for each channel, and what reads its output.

    Attributes:
        path: Path of its module.
        readers: Paths of the layers that its weight and bias can be moved into; None if something else reads
            its output, too.
    """

    path: str
    readers: tuple[str, ...] | None

    def norm(self, network: nn.Module) -> nn.LayerNorm | nn.GroupNorm:
        """Return the norm of a network of this architecture."""
        norm = network.get_submodule(self.path)
        assert isinstance(norm, nn.LayerNorm | nn.GroupNorm)
        return norm


def find_layer_norms(
    network: nn.Module, found: ChannelGroups, layers: dict[fx.Node, SolvableLayer]
) -> dict[fx.Node, LayerNormUse]:
    """Find all layer norms over channels that have a weight and are called once.

    Args:
        network: The network.
        found: Its graph.
        layers: Node of a layer's module -> the layer.
    """
    # Not norms over the features inside of an attention head.
    over_channels = {place.name for group in found.groups if not group.fixed for place in group.weights}
    norms = [
        node
        for node in found.graph.nodes
        if _is_layer_norm(network, node) and f"{node.target}.weight" in over_channels
    ]
    paths = [str(node.target) for node in norms]
    return {
        node: LayerNormUse(path, _find_readers(network, found, layers, node))
        for node, path in zip(norms, paths, strict=True)
        if paths.count(path) == 1
    }


def _is_layer_norm(network: nn.Module, node: fx.Node) -> bool:
    norm = get_module(network, node)
    if isinstance(norm, nn.LayerNorm):
        return norm.elementwise_affine and norm.weight.dim() == 1 and norm.bias is not None
    return isinstance(norm, nn.GroupNorm) and norm.num_groups == 1 and norm.affine


def _find_readers(
    network: nn.Module, found: ChannelGroups, layers: dict[fx.Node, SolvableLayer], node: fx.Node
) -> tuple[str, ...] | None:
    """Follow the users of a norm to the layers that read it; None if there is anything else."""
    readers, users = list[str](), value_users(node)
    while users:
        user = users.pop()
        module = get_module(network, user)
        if user in layers and _takes_affine(layers[user].layer(network)):
            readers.append(layers[user].path)
        elif found.rules.get(user.name) in _MOVES or isinstance(module, nn.AdaptiveAvgPool2d):
            users += value_users(user)
        else:
            return None
    return tuple(readers)


def _takes_affine(layer: ConvOrLinear) -> bool:
    """Return whether any weight and bias of a layer's input channels can be moved into the layer."""
    if isinstance(layer, nn.Linear):
        return layer.bias is not None
    # Padded zeros get no bias.
    return layer.bias is not None and layer.groups == 1 and layer.padding in ((0, 0), "valid")


@torch.no_grad()
def move_into_readers(use: LayerNormUse, network: nn.Module) -> None:
    """Move a norm's weight and bias into the layers that read it; the network computes the same as before.

    Args:
        use: The norm; it has readers.
        network: A network of its architecture, changed in place.
    """
    norm = use.norm(network)
    for path in use.readers or ():
        layer = network.get_submodule(path)
        assert isinstance(layer, ConvOrLinear)
        assert layer.bias is not None
        # The k values of a channel lie side by side, those of a conv's kernel as those of a flattened map.
        values = layer.weight.flatten(1).unflatten(1, (len(norm.weight), -1)).double()
        layer.bias += (values.sum(dim=2) @ norm.bias.double()).to(layer.bias)
        layer.weight.copy_((values * norm.weight.double()[:, None]).flatten(1).view_as(layer.weight))
    reset_affine(norm)


@torch.no_grad()
def reset_affine(norm: nn.LayerNorm | nn.GroupNorm) -> None:
    """Set the weight of a norm to 1 and its bias to 0."""
    norm.weight.fill_(1.0)
    norm.bias.zero_()
