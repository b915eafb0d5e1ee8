"""Teachers without the values of their weights, to check what depends only on the shapes."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from ka_ray.teachers.teacher import Teacher


def without_values(teacher: Teacher) -> Teacher:
    """Return a teacher whose weights are all 0 and take no memory; the given one stays unchanged.

    Args:
        teacher: The teacher.
    """
    network = teacher.network
    # What deepcopy finds in its memo it does not copy, and weights that are shared stay shared.
    memo = {id(weight): _zeros(weight) for weight in [*network.parameters(), *network.buffers()]}
    return replace(teacher, network=copy.deepcopy(network, memo))


def _zeros(weight: Tensor) -> Tensor:
    """Return zeros of the same shape that all lie at one address."""
    zeros = torch.zeros((), dtype=weight.dtype, device=weight.device).expand(weight.shape)
    return nn.Parameter(zeros, requires_grad=False) if isinstance(weight, nn.Parameter) else zeros
