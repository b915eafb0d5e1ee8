"""Copy batches from numpy arrays to a device and back, on a GPU through pinned memory.

Copies between a GPU and pinned memory were 6 and 38 times as fast as those of other memory on an H100
(`benchmarks/gpu.py`): 54 GB/s instead of 8.6 to the GPU, and instead of 1.4 from it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy of an array on a device, which may be read-only.

    Args:
        array: The array.
        device: The device.
    """
    if device.type != "cuda":
        return torch.tensor(array, device=device)
    staged = _pinned(array.shape, torch.from_numpy(np.empty(0, array.dtype)).dtype)
    np.copyto(staged.numpy(), array)
    # torch keeps the pinned memory until the copy, which runs in the background, is done.
    return staged.to(device, non_blocking=True)


def to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Return tensors as arrays in row-major order. Those of a GPU are copied side by side.

    Args:
        tensors: Name -> tensor.
    """
    copies, devices = dict[str, Tensor](), set[torch.device]()
    for name, tensor in tensors.items():
        if tensor.device.type == "cuda":
            copies[name] = _pinned(tensor.shape, tensor.dtype).copy_(tensor.contiguous(), non_blocking=True)
            devices.add(tensor.device)
        else:
            copies[name] = tensor.cpu().contiguous()
    for device in devices:
        torch.cuda.synchronize(device)
    return {name: copy.numpy() for name, copy in copies.items()}


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return uninitialised memory that a GPU can copy from and to; torch uses freed memory again."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)
