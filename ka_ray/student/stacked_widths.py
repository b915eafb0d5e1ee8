"""Check that teachers and student differ in their widths alone, and find the teachers' widths."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.student.channel_groups import ChannelGroup, ChannelGroups, find_channel_groups

_GEOMETRY = ("stride", "padding", "dilation", "padding_mode")


def find_teacher_widths(
    student: nn.Module,
    found: ChannelGroups,
    teachers: Mapping[str, nn.Module],
    solved: Collection[str],
    head: Collection[str],
    images: Tensor,
) -> tuple[tuple[int, ...], ...]:
    """Find how many channels each teacher has in each group of the student's channels.

    Args:
        student: The student's network, in eval mode.
        found: Its groups of channels.
        teachers: Name of a teacher -> its network, in eval mode.
        solved: Paths of the student's modules with weights, without those of the head.
        head: Paths of the last layer, and of what belongs to it.
        images: Input of the networks, `[B, C, H, W]`, two or more.

    Returns:
        Per group, in the order of the groups, one number per teacher.

    Raises:
        InputError: A teacher has another architecture than the student.
    """
    widths = list[list[int]]()
    for name, network in teachers.items():
        groups = found.groups
        same = [_check_same(name, path, student, network, head) for path in (*solved, *head)]
        if not all(same):
            # The groups of networks that differ only in their widths are the same.
            groups = find_channel_groups(network, images).groups
            _check_same_groups(name, found, groups)
        widths.append([group.width for group in groups])
    return tuple(zip(*widths, strict=True))


def _check_same(
    teacher: str, path: str, student: nn.Module, network: nn.Module, head: Collection[str]
) -> bool:
    """Check that a module of two networks differs at most in its widths; return whether these are equal.

    Of the head, the number of classes may differ.
    """
    module, other = student.get_submodule(path), dict(network.named_modules()).get(path)
    own, shapes = dict(_shapes(module)), {} if other is None else dict(_shapes(other))
    same = type(other) is type(module) and own.keys() == shapes.keys()
    same = same and all(shapes[name][2:] == shape[2:] for name, shape in own.items())
    same = same and all(getattr(module, key, 0) == getattr(other, key, 0) for key in _GEOMETRY)
    if not same:
        raise InputError(
            f"student.start exact: teacher {teacher} has another architecture than the student: its module "
            f"{path!r} is {other}, and not {module}"
        )
    first = 1 if path in head else 0
    return all(shapes[name][first:] == shape[first:] for name, shape in own.items())


def _shapes(module: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    yield from ((name, tensor.shape) for name, tensor in module.state_dict().items())


def _check_same_groups(teacher: str, found: ChannelGroups, groups: tuple[ChannelGroup, ...]) -> None:
    """Check that two networks have the same groups of channels, and that fixed ones have one width."""
    output = next(node for node in found.graph.nodes if node.op == "output").args[0]
    classes = found.of_node.get(output.name, ())
    for index, group in enumerate(found.groups):
        other = groups[index] if len(groups) == len(found.groups) else None
        same = other is not None and _places(other) == _places(group)
        if same and other is not None and group.fixed and index not in classes:
            same = other.width == group.width
        if not same:
            raise InputError(
                f"student.start exact: teacher {teacher} has another architecture than the student: the "
                f"channels of {group.weights[0].name!r} differ in more than their number"
            )


def _places(group: ChannelGroup) -> list[tuple[str, int, int]]:
    return [(place.name, place.axis, place.repeat) for place in group.weights]
