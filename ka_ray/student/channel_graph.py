"""Follow the channels of a network from operation to operation; see :mod:`ka_ray.student.channel_groups`."""

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from ka_ray.student.channel_labels import ChannelLabels
from ka_ray.student.channel_rules import LAYER_RULES, Rule, Value
from ka_ray.student.channel_shapes import SHAPE_RULES
from ka_ray.student.module_calls import find_function
from ka_ray.student.trace import trace_network

_RULES: dict[str, Rule] = LAYER_RULES | SHAPE_RULES
_READ_SHAPE = {"size", "dim", "numel", "getattr"}


class ChannelGraph(fx.Interpreter):
    """Runs a network on images, and labels the axes of all its values and weights.

    Args:
        network: The network, in eval mode.

    Attributes:
        labels: The sets of channels.
        values: Node -> its tensor; of a tuple, a tuple.
        weights: Id of a tensor of the network -> the tensor and its labels.
        rules: Node -> the name of its operation; only if the operation is known.
    """

    def __init__(self, network: nn.Module) -> None:
        graph, _ = trace_network(network)
        super().__init__(network, graph=graph)
        self.labels = ChannelLabels()
        self.values: dict[fx.Node, Any] = {}
        # The tensors themselves are kept, because the id of a deleted one may be given to another.
        self.weights: dict[int, tuple[Tensor, Value]] = {}
        self.rules: dict[fx.Node, str] = {}
        self._saved = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node's value, and label it."""
        result = super().run_node(n)
        if n.op == "placeholder" and isinstance(result, Tensor):
            channels = self.labels.new(result.shape[1], fixed=True)
            axes = (None, channels, *(None for _ in result.shape[2:]))
            self.values[n] = Value(tuple(result.shape), axes)
        elif n.op == "get_attr" and isinstance(result, Tensor):
            self.values[n] = self._label_weight(result)
        elif n.op == "output":
            self._fix_inputs(n)
        elif n.op.startswith("call"):
            self._label_call(n, result)
        return result

    def _label_weight(self, tensor: Any) -> Value | None:
        """Return a tensor of the network with its labels; None if there is no tensor."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) not in self.weights:
            fixed = id(tensor) not in self._saved  # only what the state dict has can be permuted
            axes = tuple(self.labels.new(size, fixed) for size in tensor.shape)
            self.weights[id(tensor)] = tensor, Value(tuple(tensor.shape), axes, is_weight=True)
        return self.weights[id(tensor)][1]

    def _inputs(self, n: fx.Node) -> Iterator[Value]:
        """Yield the tensors that a node gets."""
        for node in n.all_input_nodes:
            value = self.values.get(node)
            yield from (v for v in (value if isinstance(value, tuple) else (value,)) if v is not None)

    def _fix_inputs(self, n: fx.Node) -> None:
        for value in self._inputs(n):
            self.labels.fix(value.axes)

    def _fix_weights(self, module: nn.Module) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            value = self._label_weight(tensor)
            self.labels.fix(value.axes if value else ())

    def _label_call(self, n: fx.Node, result: Any) -> None:
        operands: Any = fx.node.map_arg((n.args, n.kwargs), lambda m: self.values.get(m, self.env[m]))
        args, kwargs = operands
        if n.op == "call_module" and args:
            name, args = find_function(self.fetch_attr(str(n.target)), args, self._label_weight)
            kwargs = {}  # of the modules that have a rule, these do not change the order
        elif n.op == "call_module":
            name = ""
        else:
            name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
            name = name.rstrip("_")
        shapes = _find_shapes(result)
        if name == "getitem" and isinstance(self.values.get(n.all_input_nodes[0]), tuple):
            self.values[n] = args[0][args[1]]
        elif shapes is None:  # a number, such as one of a shape, or a check
            if name not in _READ_SHAPE:
                self._fix_inputs(n)
        else:
            self.values[n] = self._apply_rule(n, name, shapes, args, kwargs)

    def _apply_rule(self, n: fx.Node, name: str, shapes: Any, args: Any, kwargs: Any) -> Any:
        """Return the labelled result of a call; what it gets is fixed if there is no rule for it."""
        inputs, rule = list(self._inputs(n)), _RULES.get(name)
        axes: Any = None
        if inputs and rule is not None and _takes(rule, (self.labels, shapes, *args), kwargs):
            axes = rule(self.labels, shapes, *args, **kwargs)
            self.rules[n] = name
        else:
            self._fix_inputs(n)
            if n.op == "call_module":
                self._fix_weights(self.fetch_attr(str(n.target)))
        is_weight = n.op != "call_module" and all(value.is_weight for value in inputs)
        if isinstance(shapes[0], int) or not shapes:
            return Value(shapes, axes or (None,) * len(shapes), is_weight)
        each = axes or [shape and (None,) * len(shape) for shape in shapes]
        return tuple(
            None if shape is None else Value(shape, own, is_weight)
            for shape, own in zip(shapes, each, strict=True)
        )


def _find_shapes(result: Any) -> Any:
    """Return the shape of a tensor, or a tuple of the shapes of tensors; None if there is no tensor."""
    if isinstance(result, Tensor):
        return tuple(result.shape)
    if isinstance(result, tuple | list) and any(isinstance(item, Tensor) for item in result):
        return tuple(tuple(item.shape) if isinstance(item, Tensor) else None for item in result)
    return None


def _takes(rule: Rule, args: Any, kwargs: Any) -> bool:
    """Return whether a rule knows all arguments of a call."""
    try:
        inspect.signature(rule).bind(*args, **kwargs)
    except TypeError:
        return False
    return True
