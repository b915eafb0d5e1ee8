"""How much memory a stage may take, on a CPU or a GPU."""

from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""Folder in which Linux tells a container its limit of memory."""

LIMIT_AND_USE = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files of the limit and of what is used, in bytes, of the second and the first version of cgroups."""


def free_memory(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Return how many bytes a process may still take on a device.

    Args:
        device: A GPU, or the CPU: there it is what the machine has left, or the container if that is less.
        cgroup: The folder of the container's limits.
    """
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    left = [_left(cgroup / limit, cgroup / use) for limit, use in LIMIT_AND_USE]
    return min([int(psutil.virtual_memory().available), *(size for size in left if size is not None)])


def _left(limit: Path, use: Path) -> int | None:
    """Return what a container has left; None without a limit."""
    try:
        return max(0, int(limit.read_text(encoding="ascii")) - int(use.read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is no such file, or the limit is "max"
        return None
