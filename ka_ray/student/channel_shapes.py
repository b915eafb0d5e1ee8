"""What operations that move entries, or take means of them, do to the order of channels.

:mod:`ka_ray.student.channel_rules` says what a rule gets and returns.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ka_ray.student.channel_labels import ChannelLabels, Label
from ka_ray.student.channel_rules import Axes, Rule, Shape, Value


def _mean(
    labels: ChannelLabels, shape: Shape, x: Value, dim: Any = None, keepdim: bool = False, **_: Any
) -> Axes:
    # A mean does not depend on the order of what it is taken over.
    axes = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    reduced = {axis % len(x.shape) for axis in axes}
    return tuple(
        None if axis in reduced else label
        for axis, label in enumerate(x.axes)
        if keepdim or axis not in reduced
    )


def _extreme(labels: ChannelLabels, shape: Shape, x: Value, dim: Any = None, keepdim: bool = False) -> Axes:
    labels.add_operation(x.axes, "max_pool")
    return _mean(labels, shape, x, dim, keepdim)


def _reshape(labels: ChannelLabels, shape: Shape, x: Value, *_: Any, **__: Any) -> Axes:
    axes: list[Label] = [None] * len(shape)
    for sources, targets in _matching_axes(x.shape, shape):
        if not sources or not targets:
            continue
        first, *rest = sources
        label = x.axes[first]
        labels.fix(x.axes[axis] for axis in rest)
        if len(targets) > 1:
            # A channel axis that is divided, such as one of heads: the last axis but one may have any order.
            sizes = [shape[axis] for axis in targets]
            axes[targets[-2]] = label and labels.divide(label, math.prod(sizes[:-2]), *sizes[-2:])
        elif label is not None:
            size = shape[targets[0]] // x.shape[first]
            axes[targets[0]] = tuple(s._replace(repeat=s.repeat * size) for s in label)
    return tuple(axes)


def _matching_axes(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest sets of adjacent axes that hold the same entries; axes of length 1 are left out."""
    before = [axis for axis, size in enumerate(old) if size > 1]
    after = [axis for axis, size in enumerate(new) if size > 1]
    while before or after:
        sources, targets = [before.pop(0)], [after.pop(0)]
        left, right = old[sources[0]], new[targets[0]]
        while left != right:
            if left < right:
                sources.append(before.pop(0))
                left *= old[sources[-1]]
            else:
                targets.append(after.pop(0))
                right *= new[targets[-1]]
        yield sources, targets


def _permute(labels: ChannelLabels, shape: Shape, x: Value, *dims: Any, **named: Any) -> Axes:
    order = named.get("dims", dims[0] if len(dims) == 1 else dims)
    return tuple(x.axes[axis] for axis in order)


def _transpose(labels: ChannelLabels, shape: Shape, x: Value, dim0: int, dim1: int) -> Axes:
    order = list(range(len(shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return tuple(x.axes[axis] for axis in order)


def _expand(labels: ChannelLabels, shape: Shape, x: Value, *_: Any, **__: Any) -> Axes:
    axes = list[Label]()
    for back in range(len(shape), 0, -1):
        kept = len(x.shape) >= back and x.shape[-back] == shape[-back]
        # Copies of one entry may have any order.
        axes.append(x.axes[-back] if kept else labels.new(shape[-back]))
    return tuple(axes)


def _concatenate(
    labels: ChannelLabels, shape: Shape, tensors: Sequence[Value], dim: int = 0, axis: int | None = None
) -> Axes:
    along = (dim if axis is None else axis) % len(shape)
    result = list[Label]()
    for i in range(len(shape)):
        found = [tensor.axes[i] for tensor in tensors]
        if i != along:
            label = found[0]
            for other in found[1:]:
                label = labels.unify(label, other)
        elif all(label is None for label in found):
            label = None
        else:
            sizes = [tensor.shape[i] for tensor in tensors]
            label = tuple(
                segment
                for own, size in zip(found, sizes, strict=True)
                for segment in (labels.new(size, fixed=True) if own is None else own)
            )
        result.append(label)
    return tuple(result)


def _divide(
    labels: ChannelLabels, shapes: Sequence[Shape], x: Value, _: Any = None, dim: int = 0
) -> list[Axes]:
    along, begin, parts = dim % len(x.shape), 0, list[Axes]()
    for shape in shapes:
        end = begin + shape[along]
        parts.append(tuple(
            labels.slice(label, begin, end) if axis == along else label for axis, label in enumerate(x.axes)
        ))  # fmt: skip
        begin = end
    return parts


def _unbind(labels: ChannelLabels, shapes: Sequence[Shape], x: Value, dim: int = 0) -> list[Axes]:
    axes = list(x.axes)
    labels.fix((axes.pop(dim),))
    return [tuple(axes) for _ in shapes]


def _pad(
    labels: ChannelLabels,
    shape: Shape,
    x: Value,
    pad: Sequence[int],
    mode: str = "constant",
    value: Any = None,
) -> Axes:
    axes = list(x.axes)
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = len(shape) - 1 - i
        label = axes[axis]
        if label is None or before == after == 0:
            continue
        if mode != "constant" or min(before, after) < 0:
            labels.fix((label,))
            axes[axis] = None
        else:  # the padding is the same everywhere, so it may have any order
            first, last = (labels.new(size) if size else () for size in (before, after))
            axes[axis] = (*first, *label, *last)
    return tuple(axes)


def _get_item(labels: ChannelLabels, shape: Shape, x: Value, index: Any) -> Axes:
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(item is None or item is ... or isinstance(item, int | slice) for item in items):
        labels.fix(x.axes)
        return (None,) * len(shape)
    missing = len(x.shape) - sum(item is not None and item is not ... for item in items)
    if ... not in items:
        items.append(...)
    at = items.index(...)
    items[at : at + 1] = [slice(None)] * missing
    axes, axis = list[Label](), 0
    for item in items:
        if item is None:
            axes.append(None)
            continue
        label, size = x.axes[axis], x.shape[axis]
        if isinstance(item, int):  # one channel is read
            labels.fix((label,))
        else:
            start, stop, step = item.indices(size)
            if step != 1:
                labels.fix((label,))
            axes.append(label if stop - start == size and step == 1 else labels.slice(label, start, stop))
            if step != 1:
                axes[-1] = None
        axis += 1
    return tuple(axes)


SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("mean", "sum"), _mean),
    **dict.fromkeys(("amax", "amin"), _extreme),
    **dict.fromkeys(("reshape", "view", "flatten", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(("chunk", "split"), _divide),
    "permute": _permute,
    "transpose": _transpose,
    "unbind": _unbind,
    "pad": _pad,
    "getitem": _get_item,
}
"""Name of an operation -> its rule."""
