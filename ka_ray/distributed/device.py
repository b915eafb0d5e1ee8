"""The device of a Ray actor."""

import torch

from ka_ray.config import Resources


def actor_device(resources: Resources) -> torch.device:
    """Return the device of an actor: the GPU that Ray gave it, otherwise the CPU.

    On a CPU, also limit torch to as many threads as the actor has CPUs.
    """
    if resources.gpu > 0 and torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(max(1, round(resources.cpu)))
    return torch.device("cpu")
