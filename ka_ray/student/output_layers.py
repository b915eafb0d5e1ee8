"""Find the layers whose outputs, added up, are the output of a stage.

A stage is the part of a network that leads from one tap to the next. Shapes: C output channels of the stage.
"""

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ka_ray.student.batch_norms import Norm, copy_to_float64
from ka_ray.student.trace import drop_probability_attr, trace_network

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class OutputLayer:
    """A layer whose output is one summand of a stage's output.

    Attributes:
        layer: The layer.
        norm: The batch norm after it; None if there is none.
    """

    layer: nn.Conv2d | nn.Linear
    norm: Norm | None

    @property
    def width(self) -> int:
        """C, the number of output channels."""
        return len(self.layer.weight)

    @property
    def has_bias(self) -> bool:
        """Whether the layer or its batch norm can add a constant to each channel."""
        return self.norm is not None or self.layer.bias is not None

    def fold(self, weight: Tensor, bias: Tensor) -> None:
        """Apply an affine map of the channels to the output, by changing the weights in place.

        A batch norm is kept. Its new running statistics are computed as if the channels before the map were
        independent, and it then changes nothing in eval mode, except that it adds a constant.

        Args:
            weight: `[C, C]`, float64.
            bias: `[C]`, float64.
        """
        bias_before = self.layer.bias
        old = weight.new_zeros(self.width) if bias_before is None else copy_to_float64(bias_before)
        if self.norm is None:
            self._transform(weight, weight @ old + bias)
            return
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, scale, shift = map(copy_to_float64, tensors)
        gain = scale / (variance + norm.eps).sqrt()
        weight_and_gain = weight * gain
        # Of independent channels, variances add up weighted by the squared weights.
        new_mean, new_variance = weight_and_gain @ (mean - old), weight_and_gain.square() @ variance
        # The layer takes over all of the map but its constant, which the norm takes over.
        self._transform(weight_and_gain, torch.zeros_like(old))
        norm.bias.copy_(new_mean + weight @ (gain * (old - mean) + shift) + bias)
        norm.weight.copy_((new_variance + norm.eps).sqrt())
        norm.running_mean.copy_(new_mean)
        norm.running_var.copy_(new_variance)

    def _transform(self, weight: Tensor, bias: Tensor) -> None:
        """Multiply the layer's weight by `[C, C]` from the left, and replace its bias."""
        flat = copy_to_float64(self.layer.weight).flatten(1)
        self.layer.weight.copy_((weight @ flat).view_as(self.layer.weight))
        if self.layer.bias is not None:
            self.layer.bias.copy_(bias)


def find_output_layers(stage: nn.Module, grouped: bool = False) -> list[OutputLayer]:
    """Find the layers whose outputs, added up, are the output of a stage.

    Args:
        stage: Any module that torch.fx can trace.
        grouped: Whether convs with groups count as well; no adapter can be folded into them.

    Returns:
        The layers; empty if the output is anything else, or if none of the layers can have a bias.

    Raises:
        InputError: torch.fx cannot trace the stage.
    """
    root = nn.Sequential(stage)  # so that a stage that is a bare layer is a call in the graph, too
    graph, _ = trace_network(root)
    *_, output = graph.nodes
    layers = _Finder(root, graph, grouped).find(output.args[0]) or []
    fits = len({layer.width for layer in layers}) == 1 and any(layer.has_bias for layer in layers)
    return layers if fits else []


def find_last_layer(stage: nn.Module) -> tuple[nn.Conv2d | nn.Linear, Norm | None] | None:
    """Return the one layer that a stage ends in, with or without groups, and the batch norm after it.

    None if the stage ends in anything else, or if there is no place for a bias.
    """
    layers = find_output_layers(stage, grouped=True)
    return (layers[0].layer, layers[0].norm) if len(layers) == 1 else None


class _Finder:
    """Walks a graph backwards from a value to the layers that it is the output of.

    Args:
        root: The module that the graph was traced from.
        graph: The graph.
        grouped: Whether convs with groups count.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, grouped: bool) -> None:
        self.root, self.grouped = root, grouped
        self.calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        # A weight that is read without calling its module counts as a call: changing it has other effects.
        read = (str(node.target) for node in graph.nodes if node.op == "get_attr")
        self.calls.update(path.rpartition(".")[0] for path in read)

    def find(self, node: Any) -> list[OutputLayer] | None:
        """Return the layers whose outputs, added up, are this value; None if it is anything else."""
        if not isinstance(node, fx.Node) or len(node.users) != 1:  # another user would see the change, too
            return None
        if node.target in _ADDITIONS and len(node.args) == 2 and not node.kwargs:
            left, right = self.find(node.args[0]), self.find(node.args[1])
            return left + right if left and right and node.args[0] is not node.args[1] else None
        module, value = self._module_called_once(node), node.args[0] if node.args else None
        # Exact types, because a subclass may compute something else from the same weights.
        if type(module) in (nn.Conv2d, nn.Linear):
            return self._output_layer(module, None)
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and _has_all_tensors(module):
            return self._output_layer(self._module_called_once(value), module)
        if isinstance(module, nn.Identity) or _drops_nothing(module):
            return self.find(value)
        return None

    def _module_called_once(self, node: Any) -> Any:
        """Return the module that returned a value if it is called nowhere else, otherwise None."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return None
        return self.root.get_submodule(str(node.target)) if self.calls[str(node.target)] == 1 else None

    def _output_layer(self, layer: Any, norm: Norm | None) -> list[OutputLayer] | None:
        if type(layer) not in (nn.Conv2d, nn.Linear):
            return None
        if getattr(layer, "groups", 1) != 1 and not self.grouped:
            return None
        fits = norm is None or norm.num_features == len(layer.weight)
        return [OutputLayer(layer, norm)] if fits else None


def _has_all_tensors(norm: Norm) -> bool:
    return norm.affine and norm.running_mean is not None and norm.running_var is not None


def _drops_nothing(module: Any) -> bool:
    name = drop_probability_attr(module) if isinstance(module, nn.Module) else None
    return name is not None and not getattr(module, name)
