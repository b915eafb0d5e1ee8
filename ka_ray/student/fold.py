"""Fold an adapter into the layers before it, so that the student needs no extra layer."""

import torch
from torch import nn

from ka_ray.student.adapter import Adapter
from ka_ray.student.output_layers import find_output_layers


def can_fold(stage: nn.Module) -> bool:
    """Return whether an adapter after this stage can be folded into it exactly.

    It can if the stage ends in a conv or linear layer, with or without batch norm, or in a sum of such ends.
    It cannot after an activation, a pooling, a depthwise conv or an identity shortcut.

    Example:
        >>> can_fold(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
        True
        >>> can_fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
        False
    """
    return bool(find_output_layers(stage))


@torch.no_grad()
def fold(adapter: Adapter, stage: nn.Module) -> None:
    """Fold an adapter into the layers whose output it gets, in place: ``W' = A W``, ``b' = A b + a``.

    In eval mode the stage then gives exactly what stage and adapter gave (Shen et al., AAAI 2019). The
    products are computed in float64, whatever the type of the weights. A batch norm becomes an identity for
    the statistics that its channels would have if they were independent;
    :func:`ka_ray.student.batch_norms.recalibrate_batch_norms` measures the true ones.

    Args:
        adapter: The adapter; it is not changed.
        stage: The stage before it; its weights are changed.

    Raises:
        ValueError: :func:`can_fold` is false for the stage, or the adapter has another number of channels.
            The stage is then unchanged.
    """
    layers = find_output_layers(stage)
    if not layers:
        raise ValueError("an adapter folds only into conv or linear layers with a bias or a batch norm")
    weight, bias = adapter.linear.weight.to(torch.float64), adapter.linear.bias.to(torch.float64)
    if layers[0].width != len(weight):
        raise ValueError(
            f"the adapter has {len(weight)} channels, but the stage gives {layers[0].width} channels"
        )
    # The layers' outputs are added, so exactly one of them must take over the adapter's bias.
    takes_bias = next(layer for layer in layers if layer.has_bias)
    for layer in layers:
        layer.fold(weight, bias if layer is takes_bias else torch.zeros_like(bias))
