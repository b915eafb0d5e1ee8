"""Load and save weights without unpickling any code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ka_ray.errors import InputError
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.storage.files import atomic_file

NESTED_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts commonly keep the state dict in a larger checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile add to each key of a state dict."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or, with weights-only loading, from a torch file.

    If the state dict is nested under one of :data:`NESTED_KEYS`, it is taken from there. The :data:`PREFIXES`
    are removed from its keys.

    Args:
        path: Checkpoint, local or remote. With the suffix ``.safetensors`` it is read as safetensors, with
            any other suffix as a torch file.

    Returns:
        Name of each weight or buffer -> tensor, on the CPU.

    Raises:
        InputError: The file cannot be read, would need unpickling of code, or contains no state dict.
    """
    loaded = _read_file(path)
    for key in NESTED_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(map(_is_weight, loaded.items())):
        raise InputError(
            f"checkpoint {path} must contain a state dict (names -> tensors), at the top or under one of the "
            f"keys {', '.join(NESTED_KEYS)}"
        )
    return _without_prefixes(dict(loaded))


def _read_file(path: Path) -> Any:
    """Read whatever a checkpoint file contains, without unpickling code."""
    try:
        # safetensors and torch read local files only, so a remote checkpoint is copied to this node first.
        local = fetch_local_copy(path)
        if path.suffix == ".safetensors":
            return load_file(local)
        return torch.load(local, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {error}") from None
    except Exception as error:
        # Weights-only loading raises pickle.UnpicklingError for code, a damaged pickle nearly any exception.
        raise InputError(
            f"checkpoint {path} contains more than weights and is not unpickled, because that could run any "
            "code. Save the network's state_dict(), or convert the file to safetensors "
            f"({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers, in whatever order the wrappers were nested."""
    for prefix in PREFIXES:
        # A wrapper prefixes all keys. A prefix on only some of them is the name of a child module and stays.
        if state and all(key.startswith(prefix) for key in state):
            consume_prefix_in_state_dict_if_present(state, prefix)
            return _without_prefixes(state)
    return state


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as a safetensors file, atomically.

    A tied weight, which several modules share, is written under each of its names. This function does not use
    ``safetensors.torch.save_model``, because that writes only one of the names, and the file would not load
    with ``load_state_dict``. Its counterpart ``load_model`` refuses files that contain all names.

    Args:
        network: Network whose parameters and buffers are written.
        path: File to write, local or remote, with the suffix ``.safetensors``.
    """
    weights, addresses = {}, set[int]()
    for name, tensor in network.state_dict().items():
        weight = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, so the other names of a tied weight get copies.
        weights[name] = weight.clone() if weight.data_ptr() in addresses else weight
        addresses.add(weight.data_ptr())
    with atomic_file(path) as part:
        save_file(weights, part)


def checkpoint_digest(path: Path) -> str:
    """Return the SHA-256 digest of a checkpoint file in hexadecimal, by which the file can be recognised."""
    with fetch_local_copy(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load a checkpoint into a network. All keys and shapes must match.

    Args:
        network: Network to load into, in place.
        path: Checkpoint, see :func:`read_state_dict`.

    Raises:
        InputError: The file contains no state dict; or keys or shapes differ, or weights are not finite, and
            the message lists them.
    """
    state, expected = read_state_dict(path), network.state_dict()
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(shapes),
    }
    found = [f"{len(keys)} {problem}: {_shorten(keys)}" for problem, keys in problems.items() if keys]
    if found:
        raise InputError(
            f"checkpoint {path} does not fit the network. Keys: {'; '.join(found)}. Check the teacher's "
            "network, its arguments and the number of its classes"
        )
    # Training that diverged leaves NaN weights; without this check they would surface only much later.
    broken = sorted(key for key, weight in state.items() if not weight.isfinite().all())
    if broken:
        raise InputError(f"checkpoint {path} contains weights that are NaN or infinite: {_shorten(broken)}")
    network.load_state_dict(state)


def _shorten(keys: list[str]) -> str:
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
