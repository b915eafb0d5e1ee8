"""Who am I among the workers: 0 of 1 where there is no process group."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks; the same result on every rank."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def on_any_rank(flag: bool) -> bool:
    """Whether something is so on any rank: a decision that all must share, whatever each of them sees."""
    return bool(sum_over_ranks(torch.tensor(float(flag), device=_barrier_device())) > 0)


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros((), device=_barrier_device()))


def _barrier_device() -> str:
    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"
