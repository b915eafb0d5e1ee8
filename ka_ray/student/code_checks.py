"""Check that the channels of a student can be chosen, before anything is computed."""

from collections.abc import Set

from ka_ray.errors import InputError
from ka_ray.student.stacked_networks import StackedNetworks


def check_codes(networks: StackedNetworks) -> int:
    """Check, without computing anything, that every group of channels gets a code.

    Args:
        networks: The teachers and the student.

    Returns:
        Number of layers.

    Raises:
        InputError: No layer reads a group, or channels of several groups are side by side in one value.
    """
    layers = [layer for layer in networks.layers if not networks.is_tied(layer)]
    for layer in layers:
        networks.group_index(layer.output)
    read = [layer.source for layer in layers if not networks.group(layer.source).fixed]
    refuse_unread(networks, {networks.group_index(source) for source in read})
    return len(networks.layers)


def refuse_unread(networks: StackedNetworks, read: Set[int]) -> None:
    """Refuse a student in which layers write groups of channels that no layer reads.

    Args:
        networks: The teachers and the student.
        read: Indices of the groups that layers read.

    Raises:
        InputError: There is such a group.
    """
    written = {networks.group_index(root) for root in networks.sums if root is not networks.output}
    if unread := sorted(written - read):
        group = networks.groups[unread[0]]
        reason = "have a fixed order" if group.fixed else "are read by no layer"
        raise InputError(
            f"student.start exact: the channels of {group.values[0].name!r} in the student's network "
            f"{reason}; such networks are not supported"
        )
