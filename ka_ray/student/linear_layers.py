"""Layers that are computed instead of trained: a conv or linear layer is linear in its weights.

Shapes: B images, C_in and C channels of a layer's input and output, *space its output's height and width, n
positions (of all images together), G groups of a conv, D = C_in / G * kernel size inputs of one output value,
T = C / G outputs of a group.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.numerics.ridge import LayerSolution
from ka_ray.student.fold import Norm, last_layer

ConvOrLinear = nn.Conv2d | nn.Linear


def patches(layer: ConvOrLinear, features: Tensor, positions: Tensor | None = None) -> Tensor:
    """Give what output values of a layer are linear functions of.

    Args:
        layer: A conv of any kernel, stride, padding, dilation and groups, or a linear layer.
        features: Its input, `[B, C_in, height, width]` or `[B, C_in]`.
        positions: `[B, P]` of its output, for each image; None: all. Only what is asked for is copied.

    Returns:
        `[B, P, G, D]`: one position for a linear layer.
    """
    if isinstance(layer, nn.Linear):
        return features[:, None, None]
    padded, (height, width) = _padded(layer, features), layer.kernel_size
    space = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            padded.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    ]
    image, channel, *steps = padded.stride()
    strides = [step * one for step, one in zip(steps, layer.stride, strict=True)]
    inside = [step * one for step, one in zip(steps, layer.dilation, strict=True)]
    windows = padded.as_strided(
        (len(padded), *space, padded.shape[1], height, width), (image, *strides, channel, *inside)
    )
    if positions is None:
        return windows.reshape(len(padded), space[0] * space[1], layer.groups, -1)
    images = torch.arange(len(padded), device=padded.device)[:, None]
    picked: Tensor = windows[images, positions // space[1], positions % space[1]]
    return picked.reshape(*positions.shape, layer.groups, -1)


def _padded(layer: nn.Conv2d, features: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(features, layer._reversed_padding_repeated_twice, mode=mode)


class _Reached(Exception):
    """The layer was called, with this."""


def capture_layer_input(layer: ConvOrLinear, stage: nn.Module, features: Tensor) -> Tensor:
    """Run a stage up to a layer of it; give what that is called with."""

    def stop(_: nn.Module, given: tuple[Tensor]) -> None:
        raise _Reached(given[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        stage(features)
    except _Reached as reached:
        found: Tensor = reached.args[0]
        return found
    finally:
        handle.remove()
    raise AssertionError("a stage calls its layer")


def make_layer_samples(
    layer: ConvOrLinear, features: Tensor, targets: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Lay what a layer sees beside what it should give.

    Args:
        layer: A conv or linear layer.
        features: Its input, `[B, C_in, height, width]` or `[B, C_in]`.
        targets: What it should give, `[B, C, *space]`.
        positions: `[B, P]` of each image; None: all.

    Returns:
        `[B, P, G, D + T]`.
    """
    inputs = patches(layer, features, positions)
    flat = targets.flatten(2).transpose(1, 2) if targets.dim() > 2 else targets[:, None]
    if positions is not None:
        flat = flat[torch.arange(len(flat), device=flat.device)[:, None], positions]
    outputs = flat.unflatten(2, (inputs.shape[2], -1))
    return torch.cat([inputs, outputs.to(inputs.dtype)], dim=3)


@torch.no_grad()
def apply_solution(solution: LayerSolution, layer: ConvOrLinear, norm: Norm | None) -> None:
    """Put a solution into a layer; a batch norm behind it becomes an identity but for the bias.

    That batch norm's statistics are those of the images that the layer was solved on.
    """
    layer.weight.copy_(solution.weight.flatten(0, 1).view_as(layer.weight))
    if norm is None:
        assert layer.bias is not None
        layer.bias.copy_(solution.bias.flatten())
        return
    if layer.bias is not None:
        layer.bias.zero_()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = solution.mean.flatten(), solution.variance.flatten()
    norm.running_mean.copy_(mean - solution.bias.flatten())
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)


def find_solvable_layer(stage: nn.Module) -> tuple[ConvOrLinear, Norm | None] | None:
    """Find the one layer with weights that a stage ends in, and the batch norm behind it.

    Returns:
        None where a stage has weights elsewhere, too: such a block is not linear in them all.

    Example:
        >>> find_solvable_layer(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)))[0]
        Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))
        >>> find_solvable_layer(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))) is None
        True
    """
    found = last_layer(stage)
    if found is None:
        return None
    owners = {id(parameter) for module in found if module is not None for parameter in module.parameters()}
    return found if all(id(parameter) in owners for parameter in stage.parameters()) else None
