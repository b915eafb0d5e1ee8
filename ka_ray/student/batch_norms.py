"""Replace the running statistics of batch norms without changing what they compute in eval mode.

Shapes: C channels.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.student.trace import eval_mode

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def copy_to_float64(tensor: Tensor) -> Tensor:
    """Copy a tensor to float64; always a copy, so that the original can be overwritten."""
    return tensor.to(torch.float64, copy=True)


def replace_running_stats(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Set the running statistics of a batch norm, and adapt its weight and bias to keep its output.

    The output is kept in eval mode, where the running statistics are used.

    Args:
        norm: The batch norm, changed in place.
        mean: `[C]`, the new running mean.
        variance: `[C]`, the new running variance.

    Raises:
        ValueError: The batch norm has no running statistics, or no weight and bias to adapt.
    """
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        raise ValueError("only a batch norm with running statistics, weight and bias can get new statistics")
    with torch.no_grad():
        tensors = (mean, variance, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        mean, variance, old_mean, old_variance, weight, bias = map(copy_to_float64, tensors)
        # In eval mode a norm computes gain * (x - mean) + bias; gain and offset must stay the same.
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
    """Set the running statistics of every batch norm to those of its input on some data.

    The network's output in eval mode does not change, see :func:`replace_running_stats`. Training then starts
    from nearly the same function, because the statistics of a batch are close to the running ones.

    Args:
        network: Any module; it is called once with each batch, in eval mode.
        batches: Inputs of the network.
        merge: Adds a float64 vector up over all ranks, so that all ranks get the same statistics. It is
            called once on each rank, also on a rank without batches.
    """
    norms = [m for m in network.modules() if isinstance(m, Norm) and m.running_mean is not None and m.affine]
    if not norms:
        return
    with eval_mode(network), _collect_input_sums(norms) as sums:
        for batch in batches:
            network(batch)
    merged = merge(torch.cat(sums)).split([len(own) for own in sums])
    for norm, own in zip(norms, merged, strict=True):
        count, (first, second) = own[0], own[1:].chunk(2)
        if count > 0 and norm.running_mean is not None:  # a norm that no batch reached keeps its statistics
            shift = first / count
            variance = (second / count - shift.square()).clamp_min(0)
            replace_running_stats(norm, norm.running_mean + shift, variance)


@contextmanager
def _collect_input_sums(norms: list[Norm]) -> Iterator[list[Tensor]]:
    """Collect `[1 + 2 C]` per batch norm: the count, and sums and sums of squares of its shifted inputs.

    The shift is the running mean. All ranks share it, so the sums can be added over ranks, and it is close to
    the true mean, so that the variance does not lose its digits to cancellation.
    """
    sums = [norm.weight.new_zeros(1 + 2 * norm.num_features, dtype=torch.float64) for norm in norms]

    def make_hook(total: Tensor) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(norm: Any, inputs: tuple[Tensor, ...]) -> None:
            # Channels last, then one row per value of a channel.
            shifted = (inputs[0].movedim(1, -1).flatten(0, -2) - norm.running_mean).to(torch.float64)
            count = total.new_tensor([len(shifted)])
            total.add_(torch.cat([count, shifted.sum(0), shifted.square().sum(0)]))

        return hook

    handles = [norm.register_forward_pre_hook(make_hook(own)) for norm, own in zip(norms, sums, strict=True)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure_batch_norms(
    network: nn.Module,
    names: Collection[str],
    batches: Iterable[Tensor],
    merge: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> None:
    """Measure the running statistics of batch norms again, with the weights as they are.

    Unlike :func:`recalibrate_batch_norms`, this changes the output: the mean of several networks' statistics
    does not fit the mean of their weights. As in training, these batch norms use the statistics of their
    batch meanwhile.

    Args:
        network: Any module; in eval mode apart from these batch norms, and set back afterwards.
        names: Paths of the batch norms.
        batches: Inputs of the network.
        merge: Adds a float64 vector up over all ranks, so that all ranks get the same statistics. It is
            called once on each rank, also on a rank without batches.
    """
    norms = [m for name, m in network.named_modules() if name in names and isinstance(m, Norm)]
    momenta, count = [norm.momentum for norm in norms], 0
    if not norms:
        return
    with eval_mode(network):
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        for batch in batches:
            network(batch)
            count += 1
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    statistics = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    kept = [tensor for tensor in statistics if tensor is not None]
    flat = torch.cat([copy_to_float64(tensor) for tensor in kept])
    weighted = merge(torch.cat([flat.new_tensor([count]), count * flat]))
    means = (weighted[1:] / weighted[0]).split([len(tensor) for tensor in kept])
    for tensor, mean in zip(kept, means, strict=True):
        tensor.copy_(mean)
