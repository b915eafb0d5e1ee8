"""What layers and arithmetic do to the order of channels.

A rule gets the sets of channels, the shape of the operation's result and the operation's arguments as
torch.nn.functional has them. It unites sets, and returns the label of each axis of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ka_ray.student.channel_labels import ChannelLabels, Label

Shape = tuple[int, ...]
Axes = tuple[Label, ...]
Rule = Callable[..., Any]


@dataclass(frozen=True)
class Value:
    """A tensor in the network.

    Attributes:
        shape: Its shape.
        axes: The label of each axis.
        is_weight: Whether it does not depend on the image.
    """

    shape: Shape
    axes: Axes
    is_weight: bool = False


def apply_same(labels: ChannelLabels, shape: Shape, x: Value, *_: Any, **__: Any) -> Axes:
    """Keep the labels: an operation that leaves every entry in its place, and is linear."""
    return x.axes


def apply_activation(labels: ChannelLabels, shape: Shape, x: Value, *_: Any, **__: Any) -> Axes:
    """Rule of a function of every entry by itself."""
    labels.add_operation(x.axes, "activation")
    return x.axes


def _prelu(labels: ChannelLabels, shape: Shape, x: Value, weight: Value) -> Axes:
    if weight.shape[0] > 1:
        labels.unify(x.axes[1], weight.axes[0])
    return apply_activation(labels, shape, x)


def _add(labels: ChannelLabels, shape: Shape, *operands: Any, **_: Any) -> Axes:
    tensors = [operand for operand in operands if isinstance(operand, Value)]
    axes = list[Label]()
    for back in range(len(shape), 0, -1):  # torch aligns the last axes
        # An axis of length 1 is the same for all channels.
        found = [t.axes[-back] for t in tensors if len(t.shape) >= back and t.shape[-back] == shape[-back]]
        label = found[0]
        for other in found[1:]:
            label = labels.unify(label, other)
        axes.append(label)
    return tuple(axes)


def _multiply(labels: ChannelLabels, shape: Shape, *operands: Any, **_: Any) -> Axes:
    axes = _add(labels, shape, *operands)
    if sum(isinstance(operand, Value) and not operand.is_weight for operand in operands) > 1:
        labels.add_operation(axes, "product")
    return axes


def _layer_scale(labels: ChannelLabels, shape: Shape, x: Value, gamma: Value, axis: int) -> Axes:
    labels.unify(x.axes[axis], gamma.axes[0])
    return x.axes


def _linear(labels: ChannelLabels, shape: Shape, x: Value, weight: Value, bias: Value | None = None) -> Axes:
    labels.unify(x.axes[-1], weight.axes[1])
    if bias is not None:
        labels.unify(weight.axes[0], bias.axes[0])
    return (*x.axes[:-1], weight.axes[0])


def _conv(
    labels: ChannelLabels,
    shape: Shape,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Axes:
    labels.fix((*x.axes[2:], *weight.axes[2:]))
    if groups == 1:
        labels.unify(x.axes[1], weight.axes[1])
    elif groups == x.shape[1]:  # depthwise: the outputs of each input channel lie side by side
        multiple = weight.shape[0] // groups
        repeated = x.axes[1] and tuple(s._replace(repeat=s.repeat * multiple) for s in x.axes[1])
        labels.unify(repeated, weight.axes[0])
        labels.add_operation((x.axes[1], weight.axes[0]), "depthwise")
    else:
        # Only whole groups, or channels inside of one group, could change places.
        labels.fix((x.axes[1], weight.axes[0], weight.axes[1]))
    if bias is not None:
        labels.unify(weight.axes[0], bias.axes[0])
    return (x.axes[0], weight.axes[0], *(None for _ in shape[2:]))


def _attention(
    labels: ChannelLabels, shapes: Any, x: Value, weight: Value, out_weight: Value, out_bias: Value | None
) -> Any:
    # The order of heads, and inside of heads, stays as it is.
    labels.unify(x.axes[-1], weight.axes[1])
    labels.fix((weight.axes[0], out_weight.axes[1]))
    if out_bias is not None:
        labels.unify(out_weight.axes[0], out_bias.axes[0])
    return ((*x.axes[:-1], out_weight.axes[0]), *(shape and (None,) * len(shape) for shape in shapes[1:]))


def _scaled_dot_product(
    labels: ChannelLabels,
    shape: Shape,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Axes:
    masks = () if attn_mask is None else (attn_mask,)
    labels.fix(label for operand in (query, key, value, *masks) for label in operand.axes[-2:])
    axes = list(query.axes)
    for back in range(3, len(shape) + 1):  # the heads and the images
        for other in (key, value, *masks):
            # An axis of length 1 is the same for all heads.
            if len(other.shape) >= back and other.shape[-back] == shape[-back]:
                axes[-back] = labels.unify(axes[-back], other.axes[-back])
    labels.add_operation(axes[:-2], "attention")
    return (*axes[:-2], None, None)


def _batch_norm(labels: ChannelLabels, shape: Shape, x: Value, *rest: Any, **named: Any) -> Axes:
    for weight in (*rest, *named.values()):
        if isinstance(weight, Value):
            labels.unify(x.axes[1], weight.axes[0])
    return x.axes


def _layer_norm(
    labels: ChannelLabels,
    shape: Shape,
    x: Value,
    normalized_shape: Any,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 0.0,
) -> Axes:
    labels.add_operation(x.axes, "norm")
    for tensor in (weight, bias):
        if tensor is not None:
            for back in range(1, len(tensor.shape) + 1):
                labels.unify(x.axes[-back], tensor.axes[-back])
    return x.axes


def _layer_norm_2d(labels: ChannelLabels, shape: Shape, x: Value, *rest: Any) -> Axes:
    labels.add_operation(x.axes, "norm")
    return _batch_norm(labels, shape, x, *rest)


def _group_norm(
    labels: ChannelLabels,
    shape: Shape,
    x: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 0.0,
) -> Axes:
    _layer_norm_2d(labels, shape, x, weight, bias)
    if num_groups not in (1, x.shape[1]):
        labels.fix((x.axes[1],))
    return x.axes


def apply_spatial(labels: ChannelLabels, shape: Shape, x: Value, *_: Any, **__: Any) -> Axes:
    """Rule of a linear operation on the positions of each channel, such as average pooling."""
    labels.fix(x.axes[2:])
    return (*x.axes[:2], *(None for _ in shape[2:]))


def apply_max_pool(labels: ChannelLabels, shape: Shape, x: Value, *_: Any, **__: Any) -> Axes:
    """Rule of the maximum over positions of each channel."""
    labels.add_operation(x.axes, "max_pool")
    return apply_spatial(labels, shape, x)


# By name, because timm's modules are no subclasses of torch's. All act on every entry by itself.
_ACTIVATIONS = (
    *(
        "relu",
        "relu6",
        "leakyrelu",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "gelutanh",
        "quickgelu",
        "silu",
    ),
    *("swish", "mish", "softplus", "sigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid"),
    *("hardmish", "softsign", "exp", "sqrt", "square", "clamp", "abs", "pow"),
)

LAYER_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ACTIVATIONS, apply_activation),
    **dict.fromkeys(("identity", "dropout", "contiguous", "clone", "detach", "float", "neg"), apply_same),
    **dict.fromkeys(("add", "iadd", "sub", "isub"), _add),
    **dict.fromkeys(("mul", "imul", "truediv", "itruediv", "div"), _multiply),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(
        ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"), apply_spatial
    ),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "adaptive_max_pool2d"), apply_max_pool),
    "interpolate": apply_spatial,
    "linear": _linear,
    "prelu": _prelu,
    "layer_scale": _layer_scale,
    "attention": _attention,
    "scaled_dot_product_attention": _scaled_dot_product,
    "batch_norm": _batch_norm,
    "instance_norm": _layer_norm_2d,
    "layer_norm": _layer_norm,
    "layer_norm_2d": _layer_norm_2d,
    "group_norm": _group_norm,
}
"""Name of an operation, without a trailing underscore -> its rule."""
