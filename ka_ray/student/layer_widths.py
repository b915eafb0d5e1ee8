"""Find the number of channels of each group of a student's channels that ``student.widths`` asks for."""

from collections.abc import Mapping, Sequence

from torch import nn

from ka_ray.config import EnergyWidths
from ka_ray.errors import InputError
from ka_ray.student.resized import WidthGroup
from ka_ray.student.spec import StudentSpec
from ka_ray.teachers import Teacher


def resolve_layer_widths(
    spec: StudentSpec,
    rule: float | EnergyWidths | Mapping[str, int] | None,
    teachers: Sequence[Teacher],
) -> dict[str, int]:
    """Return the widths of a student's layers, as its spec lists them.

    Args:
        spec: The student, with the network's own widths.
        rule: ``student.widths`` of the config. For a share of the variance, which is measured later, the
            network's own widths are a placeholder.
        teachers: The teachers.

    Returns:
        Name of each group of channels -> its number of channels; empty if the config gives no widths.

    Raises:
        InputError: The widths are not possible, or those of this network cannot be changed.
    """
    if rule is None:
        return {}
    groups = spec.width_groups
    if not groups:
        raise InputError(
            f"student.widths: the network {spec.network!r} has no layer whose width can be changed"
        )
    stacked = stacked_widths(groups, [teacher.network for teacher in teachers])
    if isinstance(rule, Mapping):
        return name_widths(groups, rule, stacked, spec.build_own_network())
    return scale_widths(groups, 1.0 if isinstance(rule, EnergyWidths) else rule, stacked)


def stacked_widths(groups: Sequence[WidthGroup], teachers: Sequence[nn.Module]) -> dict[str, int]:
    """Return the number of stacked channels of each group: its largest width.

    Args:
        groups: The groups of the student's network.
        teachers: The teachers' networks. One that has no such layer counts as having the student's own width.

    Returns:
        Name of a group -> number of channels that all teachers together have there.
    """
    own = {group.name: group.width for group in groups}
    totals = dict.fromkeys(own, 0)
    for teacher in teachers:
        modules = dict(teacher.named_modules())
        for name, width in own.items():
            weight = getattr(modules.get(name), "weight", None)
            totals[name] += width if weight is None else len(weight)
    return totals


def scale_widths(groups: Sequence[WidthGroup], factor: float, stacked: Mapping[str, int]) -> dict[str, int]:
    """Return the widths that are a multiple of the network's own.

    Args:
        groups: The groups of the student's network.
        factor: The multiple; widths are rounded.
        stacked: Name of a group -> its largest width.

    Returns:
        Name of each group -> its number of channels.

    Raises:
        InputError: A group would be wider than the stacked teachers.
    """
    widths = {group.name: max(group.min_width, round(factor * group.width)) for group in groups}
    for name, width in widths.items():
        if width > stacked[name]:
            raise InputError(
                f"student.widths: {factor:g} gives {name} {width} channels, more than the {stacked[name]} "
                "that all teachers together have there"
            )
    return widths


def name_widths(
    groups: Sequence[WidthGroup], given: Mapping[str, int], stacked: Mapping[str, int], network: nn.Module
) -> dict[str, int]:
    """Return the widths that are given by layer; groups without a given one keep their own.

    Args:
        groups: The groups of the student's network.
        given: Path of a layer whose output is in a group -> number of channels.
        stacked: Name of a group -> its largest width.
        network: The student's network.

    Returns:
        Name of each group -> its number of channels.

    Raises:
        InputError: A path is of no such layer, two paths of one group differ, or a width is too large.
    """
    by_path = {path: group for group in groups for path in group.paths}
    chosen_by, widths = dict[str, str](), {group.name: group.width for group in groups}
    for path, width in given.items():
        if path not in by_path:
            raise InputError(_describe_unknown(path, groups, network))
        group = by_path[path]
        first = chosen_by.setdefault(group.name, path)
        if given[first] != width:
            raise InputError(
                f"student.widths: {first} ({given[first]}) and {path} ({width}) have the same channels, "
                "because their outputs are added or multiplied; give them one number"
            )
        if not group.min_width <= width <= stacked[group.name]:
            raise InputError(
                f"student.widths: {path}: {width} must lie in {group.min_width} ... {stacked[group.name]}, "
                "the channels that all teachers together have there"
            )
        widths[group.name] = width
    return widths


def _describe_unknown(path: str, groups: Sequence[WidthGroup], network: nn.Module) -> str:
    """Return why a path gives no width, and which paths do."""
    known = ", ".join(f"{group.name} ({group.width})" for group in groups)
    exists = path in dict(network.named_modules())
    reason = (
        "has a fixed number of channels, or is no conv or linear layer"
        if exists
        else "is no layer of the student's network"
    )
    return f"student.widths: {path!r} {reason}; widths can be given for {known}"
