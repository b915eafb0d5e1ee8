"""The operations that the graph of a student may use: they only compute a result from their inputs."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGEST_NUMBER = 2**62
"""Sizes are smaller. Powers of larger numbers would take hours."""


def _on_numbers(name: str) -> Callable[..., Any]:
    """Return an operation on numbers, which refuses others, such as a text that it would repeat."""
    function = getattr(operator, name)

    def compute(*numbers: Any) -> Any:
        if not all(isinstance(one, int | float) and abs(one) <= LARGEST_NUMBER for one in numbers):
            raise TypeError(f"{name} is for numbers of at most {LARGEST_NUMBER}")
        if name == "pow" and abs(numbers[-1]) > 64:
            raise TypeError(f"{numbers[-1]} is too large for an exponent")
        return function(*numbers)

    return compute


ON_NUMBERS: dict[str, Callable[..., Any]] = {
    name: _on_numbers(name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow")
} | {"getitem": operator.getitem}
"""Name -> operation on numbers, such as the number of images, or on the list that an operation returns."""

_NAMES = """
    abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add addmm alias amax amin any arange
    argmax avg_pool1d avg_pool2d baddbmm bitwise_and bitwise_not bitwise_or bmm cat ceil celu chunk clamp
    clamp_max clamp_min clone constant_pad_nd conv1d conv2d copy cos cumsum detach div einsum elu embedding
    eq erf exp expand expm1 eye fill flip floor floor_divide full full_like gather ge gelu glu group_norm gt
    hardsigmoid hardswish hardtanh im2col index index_select layer_norm le leaky_relu
    lift_fresh_copy linalg_vector_norm linear log log1p log_sigmoid log_softmax logical_and logical_not
    logical_or lt masked_fill matmul max max_pool2d maximum mean min minimum mish mm mul ne neg new_full
    new_ones new_zeros ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal
    reflection_pad2d relu relu6 remainder repeat replication_pad2d reshape roll round rsqrt rsub
    scalar_tensor select select_scatter selu sigmoid sign silu sin slice
    slice_scatter softmax softplus split split_with_sizes sqrt square squeeze stack std sub sum sym_size tan
    tanh _to_copy topk transpose tril triu unbind unfold _unsafe_view unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_nearest2d var var_mean view where zero zeros zeros_like
"""

OPERATIONS = frozenset(_NAMES.split())
"""Names of the operations of ATen that a graph may use, without their variants that write into an input.

All of them only compute a result from their inputs, whose sizes they check: none reads or writes a file,
changes a weight, or looks at memory outside of its inputs."""


def _normalize_batch(
    images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor]:
    """Compute a batch norm in eval mode, as the operation of ATen of the same arguments.

    That one does not check the sizes of its inputs: with a mean of one channel for 64 it reads the memory
    behind it (torch 2.15). ``torch.batch_norm`` checks them.
    """
    return (torch.batch_norm(images, weight, bias, mean, var, False, momentum, eps, False),)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Compute attention; ATen's operation reads memory behind the keys if there are more values than keys."""
    if not all(isinstance(tensor, Tensor) and tensor.dim() >= 2 for tensor in (query, key, value)):
        raise TypeError("attention is for tensors")
    if key.shape[:-1] != value.shape[:-1] or query.shape[-1] != key.shape[-1]:
        raise TypeError("queries, keys and values do not fit")
    if query.shape[:-2] != key.shape[:-2] or options.get("enable_gqa"):
        raise TypeError("queries and keys are not of the same images and heads")
    if mask is not None:
        torch.broadcast_to(mask, (*query.shape[:-1], key.shape[-2]))
    function = torch.ops.aten.scaled_dot_product_attention.default
    return function(query, key, value, mask, dropout, is_causal, **options)  # type: ignore[no-any-return]


CHECKED_OPERATIONS: dict[str, Callable[..., Any]] = {
    "_native_batch_norm_legit_no_training.default": _normalize_batch,
    "scaled_dot_product_attention.default": _attend,
}
"""Operation of ATen -> the function that replaces it, because it trusts its inputs."""


def find_operation(target: str) -> Callable[..., Any]:
    """Return the function of a step.

    Args:
        target: Name and overload of an operation of ATen, such as ``conv2d.default``, or a key of
            :data:`ON_NUMBERS`.

    Raises:
        ValueError: It is not allowed, or this version of torch does not know it.
    """
    for functions in (ON_NUMBERS, CHECKED_OPERATIONS):
        if target in functions:
            return functions[target]
    name, _, overload = target.partition(".")
    packet = getattr(torch.ops.aten, name, None) if name in OPERATIONS else None
    if packet is not None and overload in packet.overloads():
        function: Any = getattr(packet, overload)
        if not function._schema.is_mutable:  # such as `add.out`, which writes into one of its arguments
            return function  # type: ignore[no-any-return]
    raise ValueError(f"{target!r} is no operation that a graph may use")
