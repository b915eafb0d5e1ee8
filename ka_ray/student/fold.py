"""Fold an adapter into the layers before it, so that the student needs no extra layer."""

import torch
from torch import nn

from ka_ray.student.adapter import Adapter
from ka_ray.student.output_layers import find_output_layers


def can_fold(stage: nn.Module) -> bool:
    """Return whether an adapter after this stage can be folded into it exactly.

    It can if the stage ends in a conv or linear layer that has a bias or is followed by a batch norm. It also
    can if the stage ends in a sum of conv or linear layers, at least one of them with a bias or a batch norm.
    It cannot if the stage ends in an activation, a pooling, a grouped (or depthwise) conv, or a sum with an
    identity shortcut.

    Args:
        stage: The part of the student between two taps; its output is the adapter's input.

    Example:
        >>> can_fold(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
        True
        >>> can_fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
        False
    """
    return bool(find_output_layers(stage))


@torch.no_grad()
def fold_adapter(adapter: Adapter, stage: nn.Module) -> None:
    """Fold an adapter into the layers that compute its input, in place: ``W' = A W``, ``b' = A b + a``.

    W and b are a layer's weight and bias, A and a those of the adapter. In eval mode, the stage then computes
    exactly what the stage followed by the adapter computed (Shen et al., AAAI 2019). The products are
    computed in float64, whatever the dtype of the weights.

    A batch norm after a layer is kept. Its new running statistics are computed as if the channels were
    independent, and its weight and bias are set so that in eval mode it does nothing but add a constant.
    :func:`ka_ray.student.batch_norms.recalibrate_batch_norms` measures the true statistics.

    Args:
        adapter: The adapter; it is not changed.
        stage: The stage whose output is the adapter's input; its weights are changed.

    Raises:
        ValueError: :func:`can_fold` is false for the stage, or adapter and stage have different numbers of
            channels. The stage is then unchanged.
    """
    layers = find_output_layers(stage)
    if not layers:
        raise ValueError(
            "an adapter can be folded only into conv or linear layers with a bias or a batch norm"
        )
    weight, bias = adapter.linear.weight.to(torch.float64), adapter.linear.bias.to(torch.float64)
    if layers[0].width != len(weight):
        raise ValueError(
            f"the adapter has {len(weight)} channels, but the stage has {layers[0].width} output channels"
        )
    # The layers' outputs are added, so exactly one of them must take over the adapter's bias.
    takes_bias = next(layer for layer in layers if layer.has_bias)
    for layer in layers:
        layer.fold(weight, bias if layer is takes_bias else torch.zeros_like(bias))
