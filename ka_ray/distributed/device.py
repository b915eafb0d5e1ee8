"""The device of a Ray actor."""

import os
from typing import Any

import ray
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


def describe_actor(network: str, device: torch.device) -> dict[str, Any]:
    """Return where this actor runs, in types of JSON; the report shows it.

    Args:
        network: Name of the teacher, or other network, that the actor holds.
        device: Its device.
    """
    return {
        "teacher": network,
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": [int(i) for i in ray.get_gpu_ids()],
        "device": str(device),
        "pid": os.getpid(),
    }
