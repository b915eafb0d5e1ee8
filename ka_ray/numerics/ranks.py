"""The torch process group as seen by one worker; without a group, a worker is rank 0 of 1."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks; every rank gets the same result and its input is not changed."""
    if world_size() > 1:
        values = values.clone()  # all_reduce works in place
        dist.all_reduce(values)
    return values


def copy_buffers_from_rank_zero(module: nn.Module) -> None:
    """Replace a module's buffers on all ranks by those of rank 0, in place.

    Each rank updates running statistics with its own images.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            contiguous = buffer.contiguous()
            dist.broadcast(contiguous, src=0)
            buffer.copy_(contiguous)


def on_any_rank(flag: bool) -> bool:
    """Return whether the flag is set on at least one rank.

    Ranks use it for decisions that all of them must take together: a rank that leaves a loop by itself would
    make the others wait forever in their next collective call.
    """
    return bool(sum_over_ranks(torch.tensor(float(flag), device=_collective_device())) > 0)


def wait_for_all() -> None:
    """Wait until every rank has called this function."""
    if world_size() > 1:
        # A sum over all ranks waits for them as `dist.barrier` does, which may guess a wrong GPU under NCCL.
        dist.all_reduce(torch.zeros((), device=_collective_device()))


def _collective_device() -> str:
    """Return the device that a collective call needs its tensors on: NCCL communicates only GPU memory."""
    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"
