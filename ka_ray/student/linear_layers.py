"""Compute layers instead of training them: the output of a conv or linear layer is linear in its weights.

A stage is the part of a student that leads from one tap to the next.

Shapes: B images, C_in and C channels of a layer's input and output, *space height and width of its output, P
sampled positions of an image's output, G groups of a conv, D = C_in / G * kernel size inputs of one output
value, T = C / G outputs of a group. A linear layer has one position and one group.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.numerics.ridge import LayerSolution
from ka_ray.student.batch_norms import Norm
from ka_ray.student.output_layers import find_last_layer

ConvOrLinear = nn.Conv2d | nn.Linear


def extract_patches(layer: ConvOrLinear, features: Tensor, positions: Tensor | None = None) -> Tensor:
    """Extract the inputs that each output value of a layer is a linear function of.

    Args:
        layer: A conv of any kernel size, stride, padding, dilation and groups, or a linear layer.
        features: Input of the layer, `[B, C_in, height, width]` or `[B, C_in]`; of a linear layer also
            `[B, *space, C_in]`.
        positions: `[B, P]`, output positions per image, numbered row by row; None: all positions. Ignored if
            there is only one.

    Returns:
        `[B, P, G, D]`.
    """
    if isinstance(layer, nn.Linear):
        flat = features.flatten(1, -2) if features.dim() > 2 else features[:, None]
        if positions is not None and flat.shape[1] > 1:
            flat = flat[torch.arange(len(flat), device=flat.device)[:, None], positions]
        return flat[:, :, None]
    padded, (height, width) = _pad(layer, features), layer.kernel_size
    space = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            padded.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    ]
    # A strided view of all windows takes no memory, so only the sampled ones are copied; `functional.unfold`
    # would copy all.
    image, channel, *steps = padded.stride()
    window_steps = [step * stride for step, stride in zip(steps, layer.stride, strict=True)]
    kernel_steps = [step * dilation for step, dilation in zip(steps, layer.dilation, strict=True)]
    windows = padded.as_strided(
        (len(padded), *space, padded.shape[1], height, width), (image, *window_steps, channel, *kernel_steps)
    )
    if positions is None:
        return windows.reshape(len(padded), space[0] * space[1], layer.groups, -1)
    images = torch.arange(len(padded), device=padded.device)[:, None]
    picked: Tensor = windows[images, positions // space[1], positions % space[1]]
    return picked.reshape(*positions.shape, layer.groups, -1)


def _pad(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Pad features as the conv pads them itself."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(features, _padding_per_side(layer, features.shape[2:]), mode=mode)


def is_conv_same(module: nn.Module | None) -> bool:
    """Return whether a module is timm's conv that pads as TensorFlow does, depending on the input's size."""
    # By name, because timm may not be installed.
    return isinstance(module, nn.Conv2d) and type(module).__name__ == "Conv2dSame"


def _padding_per_side(layer: nn.Conv2d, size: torch.Size) -> list[int]:
    """Return the padding of a conv on the left, right, top and bottom, as ``functional.pad`` takes it."""
    sides: list[int] = []
    # `functional.pad` starts with the last dimension, the width.
    for axis in (1, 0):
        if is_conv_same(layer):
            reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            outputs = -(-size[axis] // layer.stride[axis])
            total = max((outputs - 1) * layer.stride[axis] + reach - size[axis], 0)
            sides += [total // 2, total - total // 2]
        elif layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]  # torch puts an odd one to the right and to the bottom
        elif isinstance(layer.padding, str):  # "valid"
            sides += [0, 0]
        else:
            sides += [layer.padding[axis]] * 2
    return sides


class _LayerReached(Exception):
    """Raised to stop a stage at the layer of interest; its argument is the layer's input."""


def capture_layer_input(layer: ConvOrLinear, stage: nn.Module, features: Tensor) -> Tensor:
    """Run a stage up to one of its layers, and return the input of that layer.

    Args:
        layer: The layer, a module of the stage.
        stage: The stage; the rest of it after the layer does not run.
        features: Input of the stage, `[B, C, *space]`.

    Returns:
        Input of the layer, `[B, C_in, height, width]` or `[B, C_in]`.
    """

    def stop(_: nn.Module, inputs: tuple[Tensor]) -> None:
        raise _LayerReached(inputs[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        stage(features)
    except _LayerReached as reached:
        captured: Tensor = reached.args[0]
        return captured
    finally:
        handle.remove()
    raise AssertionError("the stage did not call its layer")


def make_layer_samples(
    layer: ConvOrLinear, features: Tensor, targets: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Put the inputs of a layer beside its targets: the samples of its least-squares problem.

    Args:
        layer: A conv or linear layer.
        features: Input of the layer, `[B, C_in, height, width]` or `[B, C_in]`.
        targets: Output that the layer should have, `[B, C, *space]`.
        positions: `[B, P]`, output positions per image, numbered row by row; None: all positions.

    Returns:
        `[B, P, G, D + T]`.
    """
    inputs = extract_patches(layer, features, positions)
    flat = targets.flatten(2).transpose(1, 2) if targets.dim() > 2 else targets[:, None]
    if positions is not None:
        flat = flat[torch.arange(len(flat), device=flat.device)[:, None], positions]
    outputs = flat.unflatten(2, (inputs.shape[2], -1))
    return torch.cat([inputs, outputs.to(inputs.dtype)], dim=3)


@torch.no_grad()
def apply_solution(solution: LayerSolution, layer: ConvOrLinear, norm: Norm | None) -> None:
    """Write a solution into a layer, so that the layer and its batch norm compute it in eval mode.

    The batch norm gets the output statistics of the images that the layer was solved on. Its weight and bias
    then make it an identity that also adds the solution's bias.

    Args:
        solution: Weight, bias and output statistics.
        layer: The layer, changed in place.
        norm: The batch norm after the layer, changed in place; None if there is none.
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
    # The norm sees the layer's output without the bias.
    norm.running_mean.copy_(mean - solution.bias.flatten())
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)


def find_solvable_layer(stage: nn.Module) -> tuple[ConvOrLinear, Norm | None] | None:
    """Find the only layer of a stage if the stage ends in it, and the batch norm after it.

    Returns:
        Layer and batch norm. None if the stage has weights elsewhere, too: its output is not linear in all of
        them, so it has no closed-form solution.

    Example:
        >>> find_solvable_layer(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)))[0]
        Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))
        >>> find_solvable_layer(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))) is None
        True
    """
    found = find_last_layer(stage)
    if found is None:
        return None
    owned = {id(parameter) for module in found if module is not None for parameter in module.parameters()}
    return found if all(id(parameter) in owned for parameter in stage.parameters()) else None
