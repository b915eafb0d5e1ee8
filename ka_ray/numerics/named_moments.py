"""Moments by name: what a pass over images leaves, however many images and workers there were."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ka_ray.numerics.moments import Moments
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.storage.files import atomic_file

NamedMoments = Mapping[str, Moments]
"""name -> moments."""


def merge_moments(first: NamedMoments, second: NamedMoments) -> dict[str, Moments]:
    """Merge the sums over two disjoint sets of images."""
    return {name: part.merge(second[name]) for name, part in first.items()}


def merge_moments_over_ranks(sums: NamedMoments) -> dict[str, Moments]:
    """Merge the sums of all ranks of the process group; the same on every rank."""
    return {name: part.merge_over_ranks() for name, part in sums.items()}


def save_moments(sums: NamedMoments, path: Path) -> None:
    """Write sums as safetensors, whole or not at all."""
    tensors = dict[str, torch.Tensor]()
    for name, part in sums.items():
        tensors |= {f"{name}.count": torch.tensor(part.count), f"{name}.mean": part.mean.contiguous()}
        tensors[f"{name}.scatter"] = part.scatter.contiguous()
    with atomic_file(path) as file:
        save_file(tensors, file)


def load_moments(path: Path) -> dict[str, Moments]:
    """Read what :func:`save_moments` wrote."""
    tensors = load_file(fetch_local_copy(path))
    names = [name.removesuffix(".count") for name in tensors if name.endswith(".count")]
    return {
        name: Moments(int(tensors[f"{name}.count"]), tensors[f"{name}.mean"], tensors[f"{name}.scatter"])
        for name in names
    }
