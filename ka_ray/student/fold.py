"""Fold an adapter into the layers whose output it gets, and keep batch norms true to their statistics.

Shapes: C channels.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ka_ray.student.adapter import Adapter
from ka_ray.student.trace import drop_probability_attr, evaluating, trace

Norm = nn.BatchNorm1d | nn.BatchNorm2d

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


def can_fold(stage: nn.Module) -> bool:
    """Whether an adapter behind this stage can be folded into it exactly.

    It can where the stage ends in a conv or linear layer, with or without batch norm, or in a sum of such
    ends. It cannot behind an activation, a pooling, a depthwise conv or an identity shortcut.

    Example:
        >>> can_fold(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
        True
        >>> can_fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
        False
    """
    return bool(_ends(stage))


def last_layer(stage: nn.Module) -> tuple[nn.Conv2d | nn.Linear, Norm | None] | None:
    """Give the one layer that a stage ends in, with or without groups, and the batch norm behind it.

    None where it ends in anything else, or where no bias could be set there.
    """
    ends = _ends(stage, grouped=True)
    return (ends[0].layer, ends[0].norm) if len(ends) == 1 else None


@torch.no_grad()
def fold(adapter: Adapter, stage: nn.Module) -> None:
    """Fold an adapter into the layers whose output it gets, in place: ``W' = A W``, ``b' = A b + a``.

    Exact in eval mode: the stage then gives what stage and adapter gave. Computed in float64, whatever the
    weights are. A batch norm becomes an identity for the statistics that its channels, taken as independent,
    would have; :func:`recalibrate_batch_norms` measures the true ones.

    Raises:
        ValueError: The stage is none that :func:`can_fold`, or the adapter has another width; nothing is
            changed.
    """
    ends = _ends(stage)
    if not ends:
        raise ValueError("an adapter folds only into a conv or linear layer with a bias or a batch norm")
    weight, bias = _double(adapter.linear.weight), _double(adapter.linear.bias)
    if ends[0].width != len(weight):
        raise ValueError(f"an adapter of {len(weight)} channels does not fit {ends[0].width}")
    takes_bias = next(end for end in ends if end.has_bias)
    for end in ends:
        end.fold(weight, bias if end is takes_bias else torch.zeros_like(bias))


def recentre(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Give a batch norm new running statistics ``[C]``, but change nothing that it computes in eval mode.

    Raises:
        ValueError: It has no running statistics, or no weight and bias that could make up for new ones.
    """
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        raise ValueError("only a batch norm with running statistics, weight and bias can be recentred")
    with torch.no_grad():
        tensors = (mean, variance, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, old_mean, old_variance, weight, bias = map(_double, tensors)
        gain = weight / (old_variance + norm.eps).sqrt()
        norm.bias.copy_(bias + gain * (mean - old_mean))
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


@torch.no_grad()
def recalibrate_batch_norms(
    network: nn.Module,
    batches: Iterable[Tensor],
    merge: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> None:
    """Recentre every batch norm at the statistics that its input really has, in eval mode, on some data.

    Nothing changes in eval mode; in training mode the network then starts from about the same function.

    Args:
        network: A stage, a student, any module; called with each batch once.
        batches: Its inputs.
        merge: Adds a float64 vector up over all ranks, so that every rank gets the same statistics. Called
            once on each of them, with or without batches.
    """
    norms = [m for m in network.modules() if isinstance(m, Norm) and m.running_mean is not None and m.affine]
    if not norms:
        return
    with evaluating(network), _sums_of_inputs(norms) as sums:
        for batch in batches:
            network(batch)
    merged = merge(torch.cat(sums)).split([len(own) for own in sums])
    for norm, own in zip(norms, merged, strict=True):
        count, (first, second) = own[0], own[1:].chunk(2)
        if count > 0 and norm.running_mean is not None:
            shift = first / count
            recentre(norm, norm.running_mean + shift, (second / count - shift.square()).clamp_min(0))


@contextmanager
def _sums_of_inputs(norms: list[Norm]) -> Iterator[list[Tensor]]:
    """Keep ``[1 + 2 C]`` a norm: count, and sums and sums of squares of input minus running mean.

    Measured from the running mean, which all ranks share, these add up and lose nothing to cancellation.
    """
    sums = [norm.weight.new_zeros(1 + 2 * norm.num_features, dtype=torch.float64) for norm in norms]

    def keep(total: Tensor) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(norm: Any, inputs: tuple[Tensor, ...]) -> None:
            shifted = (inputs[0].movedim(1, -1).flatten(0, -2) - norm.running_mean).to(torch.float64)
            count = total.new_tensor([len(shifted)])
            total.add_(torch.cat([count, shifted.sum(0), shifted.square().sum(0)]))

        return hook

    handles = [norm.register_forward_pre_hook(keep(own)) for norm, own in zip(norms, sums, strict=True)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _double(tensor: Tensor) -> Tensor:
    """Copy into float64, so that what is computed from it stays when the tensor is overwritten."""
    return tensor.to(torch.float64, copy=True)


@dataclass(frozen=True)
class _End:
    """The last layer of one branch, and the batch norm behind it, if any."""

    layer: nn.Conv2d | nn.Linear
    norm: Norm | None

    @property
    def width(self) -> int:
        return len(self.layer.weight)

    @property
    def has_bias(self) -> bool:
        return self.norm is not None or self.layer.bias is not None

    def fold(self, weight: Tensor, bias: Tensor) -> None:
        """Fold ``weight [C, C]`` and ``bias [C]``, both float64."""
        bias_before = self.layer.bias
        old = weight.new_zeros(self.width) if bias_before is None else _double(bias_before)
        if self.norm is None:
            self._transform(weight, weight @ old + bias)
            return
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, scale, shift = map(_double, tensors)
        gain = scale / (variance + norm.eps).sqrt()
        weight_and_gain = weight * gain
        new_mean, new_variance = weight_and_gain @ (mean - old), weight_and_gain.square() @ variance
        self._transform(weight_and_gain, torch.zeros_like(old))
        norm.bias.copy_(new_mean + weight @ (gain * (old - mean) + shift) + bias)
        norm.weight.copy_((new_variance + norm.eps).sqrt())
        norm.running_mean.copy_(new_mean)
        norm.running_var.copy_(new_variance)

    def _transform(self, weight: Tensor, bias: Tensor) -> None:
        flat = _double(self.layer.weight).flatten(1)
        self.layer.weight.copy_((weight @ flat).view_as(self.layer.weight))
        if self.layer.bias is not None:
            self.layer.bias.copy_(bias)


def _ends(stage: nn.Module, grouped: bool = False) -> list[_End]:
    """Find the layers that a stage's output is the sum of; empty where it is none of layers with a bias."""
    root = nn.Sequential(stage)  # so that a bare layer is a call in the graph, too
    graph, _ = trace(root)
    *_, output = graph.nodes
    ends = _Finder(root, graph, grouped).ends(output.args[0]) or []
    fits = len({end.width for end in ends}) == 1 and any(end.has_bias for end in ends)
    return ends if fits else []


class _Finder:
    """Looks from a value of a graph back for the layers that it is the output of."""

    def __init__(self, root: nn.Module, graph: fx.Graph, grouped: bool) -> None:
        self.root, self.grouped = root, grouped
        self.calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        taken = (str(node.target) for node in graph.nodes if node.op == "get_attr")
        self.calls.update(path.rpartition(".")[0] for path in taken)  # a weight used without its module

    def ends(self, node: Any) -> list[_End] | None:
        """Give the layers whose outputs, added, are this value; None if it is anything else."""
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return None
        if node.target in _ADDITIONS and len(node.args) == 2 and not node.kwargs:
            left, right = self.ends(node.args[0]), self.ends(node.args[1])
            return left + right if left and right and node.args[0] is not node.args[1] else None
        module, value = self._called_once(node), node.args[0] if node.args else None
        if type(module) in (nn.Conv2d, nn.Linear):
            return self._layer(module, None)
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and _is_whole(module):
            return self._layer(self._called_once(value), module)
        if isinstance(module, nn.Identity) or _drops_nothing(module):
            return self.ends(value)
        return None

    def _called_once(self, node: Any) -> Any:
        """Give the module that a value is the output of, if that is called nowhere else."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return None
        return self.root.get_submodule(str(node.target)) if self.calls[str(node.target)] == 1 else None

    def _layer(self, layer: Any, norm: Norm | None) -> list[_End] | None:
        if type(layer) not in (nn.Conv2d, nn.Linear):
            return None
        if getattr(layer, "groups", 1) != 1 and not self.grouped:
            return None
        fits = norm is None or norm.num_features == len(layer.weight)
        return [_End(layer, norm)] if fits else None


def _is_whole(norm: Norm) -> bool:
    return norm.affine and norm.running_mean is not None and norm.running_var is not None


def _drops_nothing(module: Any) -> bool:
    name = drop_probability_attr(module) if isinstance(module, nn.Module) else None
    return name is not None and not getattr(module, name)
