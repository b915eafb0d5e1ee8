"""Weights that are added to values or put beside them: class tokens and position embeddings.

They do not depend on the image, so the student's are the code of the stacked teachers'.
"""

from dataclasses import dataclass

import torch
from torch import fx, nn

from ka_ray.student.channel_groups import ChannelGroups
from ka_ray.student.graph_nodes import ADDITIONS, find_weight_name, value_users

_JOINS = (torch.cat, torch.concat, torch.concatenate)


@dataclass(frozen=True)
class AddedWeight:
    """A weight that is added to values, or put beside them as further tokens.

    Attributes:
        name: Its name.
        axis: Axis of the channels.
        group: Index of the group that they are in.
    """

    name: str
    axis: int
    group: int


def find_added_weights(network: nn.Module, found: ChannelGroups) -> list[AddedWeight]:
    """Find all weights that are only added to values, or concatenated with them.

    Args:
        network: The network.
        found: Its graph and groups.
    """
    added = list[AddedWeight]()
    for node in found.graph.nodes:
        if node.op != "get_attr" or find_weight_name(network, node) is None or not _is_added(network, node):
            continue
        # Positions have a fixed order.
        places = [
            (place, index)
            for index, group in enumerate(found.groups)
            for place in group.weights
            if not group.fixed and place.name == str(node.target)
        ]
        if len(places) == 1 and places[0][0].offset == 0 and places[0][0].repeat == 1:
            [(place, index)] = places
            added.append(AddedWeight(place.name, place.axis, index))
    return added


def _is_added(network: nn.Module, node: fx.Node) -> bool:
    users = value_users(node)
    while users:
        user = users.pop()
        if find_weight_name(network, user) is not None:
            users += value_users(user)
        elif user.target not in (*ADDITIONS, *_JOINS):
            return False
    return True
