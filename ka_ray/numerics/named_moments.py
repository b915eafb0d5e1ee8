"""Moments by name: the result of a pass over images. Its size depends on neither images nor workers."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments
from ka_ray.numerics.tensor_file import load_tensors
from ka_ray.storage.files import atomic_file

NamedMoments = Mapping[str, Moments]
"""Name, such as that of a tap -> its count, mean and scatter matrix."""


def merge_moments(first: NamedMoments, second: NamedMoments) -> dict[str, Moments]:
    """Merge the moments of two disjoint sets of images, name by name.

    Args:
        first: Moments of one set.
        second: Moments of the other set, under the same names.
    """
    return {name: part.merge(second[name]) for name, part in first.items()}


def merge_moments_over_ranks(moments: NamedMoments) -> dict[str, Moments]:
    """Merge the moments of all ranks of the process group; every rank gets the same result."""
    return {name: part.merge_over_ranks() for name, part in moments.items()}


def save_moments(moments: NamedMoments, path: Path) -> None:
    """Write moments to a safetensors file; an interrupted write leaves no partial file.

    Args:
        moments: What to write.
        path: The file, local or remote; replaced if it exists.
    """
    tensors = dict[str, torch.Tensor]()
    for name, part in moments.items():
        # safetensors refuses views that share memory or have gaps, hence `contiguous`.
        tensors |= {f"{name}.count": torch.tensor(part.count), f"{name}.mean": part.mean.contiguous()}
        tensors[f"{name}.scatter"] = part.scatter.contiguous()
    with atomic_file(path) as file:
        save_file(tensors, file)


def load_moments(path: Path) -> dict[str, Moments]:
    """Read a file that :func:`save_moments` wrote.

    Raises:
        InputError: The file is damaged.
    """
    tensors = load_tensors(path)
    names = [name.removesuffix(".count") for name in tensors if name.endswith(".count")]
    try:
        return {
            name: Moments(int(tensors[f"{name}.count"]), tensors[f"{name}.mean"], tensors[f"{name}.scatter"])
            for name in names
        }
    except (KeyError, ValueError, RuntimeError) as error:  # a name, or a count that is no number
        raise InputError(f"{path} is damaged: {error}") from None
