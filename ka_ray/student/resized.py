"""Give a network other widths: change the number of channels of its groups of channels.

The channels that one group holds are added, normalised or convolved depthwise together, so all weights along
a group change together: convs, linear layers, norms, gates, and the parts of a concatenation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.student.channel_groups import ChannelGroup, ChannelGroups, Place, find_channel_groups
from ka_ray.student.trace import eval_mode

_CONV = nn.modules.conv._ConvNd
_BATCH_NORM = nn.modules.batchnorm._NormBase


@dataclass(frozen=True)
class WidthGroup:
    """Channels of a network whose number can be changed, together.

    Attributes:
        index: Index of the group among all groups of the network.
        paths: Paths of the conv and linear layers whose outputs are these channels, in the network's order.
        width: Number of channels.
        min_width: Least number of channels. It is 2, because a depthwise conv of a single channel would be an
            ordinary one, and a single flattened channel would have no axis of its own.
        places: All places of the channels in the state dict.
    """

    index: int
    paths: tuple[str, ...]
    width: int
    min_width: int
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """The path of the first layer, by which the group is listed."""
        return self.paths[0]


def find_width_groups(network: nn.Module, images: Tensor) -> tuple[WidthGroup, ...]:
    """Find the groups of channels of a network whose number can be changed.

    The channels of the image, of the scores, and those around an operation that needs their order, such as a
    conv with groups or attention heads, are fixed. They are left out.

    Args:
        network: The network; it stays unchanged.
        images: `[B, C, H, W]`, two or more images of the size that the network is used with. Only their shape
            matters.

    Returns:
        The groups, in the order of computation.

    Raises:
        InputError: torch.fx cannot trace the network, or its channels are not understood.
    """
    return list_width_groups(network, find_channel_groups(network, images))


def list_width_groups(network: nn.Module, found: ChannelGroups) -> tuple[WidthGroup, ...]:
    """List the groups of channels whose number can be changed, of a network whose groups are known.

    Args:
        network: The network.
        found: All of its groups.
    """
    sets = dict[str, set[int]]()
    for index, group in enumerate(found.groups):
        for path in _find_layers(network, group):
            sets.setdefault(path, set()).add(index)
    groups = list[WidthGroup]()
    for index, group in enumerate(found.groups):
        # The outputs of a layer may be divided among several groups; then its path would name all of them.
        paths = tuple(path for path in _find_layers(network, group) if len(sets[path]) == 1)
        if paths and not group.fixed:
            groups.append(WidthGroup(index, paths, group.width, min(2, group.width), group.weights))
    return tuple(groups)


def _find_layers(network: nn.Module, group: ChannelGroup) -> list[str]:
    """Return the paths of the layers whose outputs are, at least in part, the channels of a group."""
    found = dict[str, None]()  # it keeps the order
    for place in group.weights:
        path, _, name = place.name.rpartition(".")
        is_output = name == "weight" and place.axis == 0
        if is_output and isinstance(network.get_submodule(path), _CONV | nn.Linear):
            found[path] = None
    return list(found)


def resize_network(
    network: nn.Module, groups: Sequence[WidthGroup], widths: Mapping[str, int], images: Tensor
) -> nn.Module:
    """Change the widths of a network, in place.

    Weights whose shape changes are drawn again from a normal distribution with the mean and the standard
    deviation of the old ones, so that constant ones, such as those of a new batch norm, stay constant. The
    standard deviation of a weight with more inputs is less, by the root of the ratio.

    Args:
        network: The network with its own widths and random weights.
        groups: Its groups of channels, see :func:`find_width_groups`.
        widths: Path of a layer whose output is in a group -> the group's number of channels. Groups without
            an entry keep their width.
        images: `[B, C, H, W]`, input to check the resized network with; only the shape matters.

    Returns:
        The network.

    Raises:
        InputError: No group has such a path, or the network does not work with these widths.
    """
    by_path = {path: group for group in groups for path in group.paths}
    if unknown := [path for path in widths if path not in by_path]:
        raise InputError(f"student.widths: {unknown[0]!r} is no layer whose width can be changed")
    shapes, tied = _resized_shapes(network, by_path, widths), dict[int, Tensor]()
    for name, shape in shapes.items():
        _resize_tensor(network, name, shape, tied)
    for path in {name.rpartition(".")[0] for name in shapes}:
        _set_sizes(network.get_submodule(path))
    if shapes:
        _check_forward_pass(network, images)
    return network


def _resized_shapes(
    network: nn.Module, by_path: Mapping[str, WidthGroup], widths: Mapping[str, int]
) -> dict[str, list[int]]:
    """Return the new shape of each weight and buffer whose shape changes."""
    changed = dict[tuple[str, int], int]()
    for path, width in widths.items():
        group = by_path[path]
        for place in group.places:
            difference = (width - group.width) * place.repeat
            changed[place.name, place.axis] = changed.get((place.name, place.axis), 0) + difference
    state, shapes = network.state_dict(), dict[str, list[int]]()
    for (name, axis), difference in changed.items():
        if difference:
            shapes.setdefault(name, list(state[name].shape))[axis] += difference
    return shapes


def _resize_tensor(network: nn.Module, name: str, shape: list[int], tied: dict[int, Tensor]) -> None:
    """Give a weight or buffer another shape; a tensor that several modules share stays shared."""
    path, _, attribute = name.rpartition(".")
    module = network.get_submodule(path)
    old: Tensor = getattr(module, attribute)
    if id(old) not in tied:
        # The old tensor is kept beside the new one, because the id of a deleted one may be given to another.
        tied[id(old)] = _draw(old, shape)
        tied[-id(old)] = old
    setattr(module, attribute, tied[id(old)])


@torch.no_grad()
def _draw(old: Tensor, shape: list[int]) -> Tensor:
    """Draw a tensor of another shape with the distribution of the old one."""
    if not old.is_floating_point():
        raise InputError(f"student.widths: a tensor of {old.dtype} cannot have other widths")
    spread = old.std(unbiased=False)
    if old.dim() > 1:
        spread = spread * (old[0].numel() / max(1, torch.Size(shape[1:]).numel())) ** 0.5
    drawn = torch.randn(shape, dtype=old.dtype, device=old.device) * spread + old.mean()
    return nn.Parameter(drawn, old.requires_grad) if isinstance(old, nn.Parameter) else drawn


def _set_sizes(module: nn.Module) -> None:
    """Set the attributes of a module that say how many channels it has, from its weights."""
    weight = getattr(module, "weight", None)
    if isinstance(module, _CONV):
        if module.groups > 1:  # a depthwise conv, because channels around other groups are fixed
            module.groups = len(module.weight) // (module.out_channels // module.groups)
        module.out_channels = len(module.weight)
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BATCH_NORM) and weight is not None:
        module.num_features = len(weight)
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        if module.num_groups == module.num_channels:
            module.num_groups = len(weight)
        module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


@torch.no_grad()
def _check_forward_pass(network: nn.Module, images: Tensor) -> None:
    with eval_mode(network):
        try:
            network(images)
        except Exception as error:  # networks raise various errors if they count on their own widths
            raise InputError(
                f"student.widths: {type(network).__name__} does not work with other widths "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); it can only have "
                "its own"
            ) from None
