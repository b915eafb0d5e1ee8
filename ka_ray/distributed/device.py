"""The device of a Ray actor."""

import torch

from ka_ray.config import Resources


def actor_device(share: Resources) -> torch.device:
    """The device of an actor: the GPU that Ray gave it, else the CPU.

    On a CPU it also limits torch to the threads that the actor's share of CPUs stands for.
    """
    if share.gpu > 0 and torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(max(1, round(share.cpu)))
    return torch.device("cpu")
