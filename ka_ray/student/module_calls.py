"""Write the call of a module as the call of a function that computes the same."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ka_ray.student.trace import drop_probability_attr

Arguments = tuple[str, tuple[Any, ...]]
"""Name of an operation, as in torch.nn.functional, and its arguments."""

_POOLS: dict[Any, str] = {
    nn.modules.pooling._AvgPoolNd: "avg_pool2d",
    nn.modules.pooling._AdaptiveAvgPoolNd: "avg_pool2d",
    nn.modules.pooling._MaxPoolNd: "max_pool2d",
    nn.modules.pooling._AdaptiveMaxPoolNd: "max_pool2d",
    nn.modules.padding._ConstantPadNd: "avg_pool2d",  # pads positions
    nn.Upsample: "interpolate",
    nn.Flatten: "flatten",
}
_LAYER_SCALES = {"LayerScale": -1, "LayerScale2d": 1}
"""Classes of timm, by name, because timm may not be installed -> the axis of the channels."""

_KNOWN_TENSORS = {
    *("weight", "bias", "gamma", "running_mean", "running_var", "num_batches_tracked"),
    *("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"),
}
"""Weights and buffers that the functions get."""


def find_function(module: nn.Module, args: tuple[Any, ...], label: Callable[[Any], Any]) -> Arguments:
    """Return the function that a module calls, with all arguments.

    A subclass is taken for its base class, unless it has further weights.

    Args:
        module: The module.
        args: Its arguments.
        label: Replaces a weight or buffer, or None, by what stands for it in the arguments.

    Returns:
        The lower-case name of the class, and the arguments as they are, if the function is not known.
    """
    if not {name for name, _ in (*module.named_parameters(), *module.named_buffers())} <= _KNOWN_TENSORS:
        return "", args
    kind, weight = type(module).__name__, getattr(module, "weight", None)
    affine = (label(weight), label(getattr(module, "bias", None)))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "conv2d", (*args, *affine, module.stride, module.padding, module.dilation, module.groups)
    if isinstance(module, nn.Linear):
        return "linear", (*args, *affine)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "batch_norm", (*args, label(module.running_mean), label(module.running_var), *affine)
    if isinstance(module, nn.LayerNorm):
        if "2d" in kind:  # over the channels of a map
            return "layer_norm_2d", (*args, *affine)
        return "layer_norm", (*args, module.normalized_shape, *affine)
    if isinstance(module, nn.GroupNorm):
        return "group_norm", (*args, module.num_groups, *affine)
    if isinstance(module, nn.PReLU):
        return "prelu", (*args, label(weight))
    return _find_other(module, kind, args, label)


def _find_other(
    module: nn.Module, kind: str, args: tuple[Any, ...], label: Callable[[Any], Any]
) -> Arguments:
    if kind in _LAYER_SCALES:
        return "layer_scale", (*args, label(getattr(module, "gamma", None)), _LAYER_SCALES[kind])
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        same = len(args) == 3 and args[0] is args[1] is args[2]
        out = (label(module.out_proj.weight), label(module.out_proj.bias))
        return "attention" if same else "", (args[0], label(module.in_proj_weight), *out)
    if kind == "Permute":
        return "permute", (*args, getattr(module, "dims", None))
    if isinstance(module, nn.Identity) or drop_probability_attr(module) is not None:
        return "identity", args
    for base, name in _POOLS.items():
        if isinstance(module, base):
            return name, args
    return kind.lower(), args
