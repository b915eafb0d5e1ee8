"""Read the safetensors files of an output folder; a damaged one is an error for the user."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ka_ray.errors import InputError
from ka_ray.storage.cache import fetch_local_copy


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Args:
        path: The file, local or remote.

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged.
    """
    local = fetch_local_copy(path)
    try:
        tensors: dict[str, torch.Tensor] = load_file(local)
    # Other errors come from a header that is JSON, but says impossible things, such as a negative shape.
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return tensors
