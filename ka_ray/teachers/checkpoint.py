"""Load weights without ever unpickling code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.storage.files import atomic_file

NESTS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
"""Left on every key by DistributedDataParallel and torch.compile."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from a torch file with weights-only loading.

    A nested ``state_dict`` / ``model`` is found, and ``module.`` / ``_orig_mod.`` prefixes are taken off.

    Raises:
        InputError: The file is neither, or holds no tensors.
    """
    try:
        loaded: Any
        local = fetch_local_copy(path)
        if path.suffix == ".safetensors":
            loaded = load_file(local)
        else:
            loaded = torch.load(local, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {error}") from None
    except Exception as error:  # pickle.UnpicklingError, or whatever a damaged pickle raises
        raise InputError(
            f"checkpoint {path} holds more than weights and is not unpickled; save its state_dict() "
            f"or convert it to safetensors ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from None
    for nest in NESTS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(nest), Mapping):
            loaded = loaded[nest]
    if not isinstance(loaded, Mapping) or not loaded or not all(map(_is_weight, loaded.items())):
        raise InputError(f"checkpoint {path} must hold a state dict: names -> tensors")
    return _without_prefix(dict(loaded))


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return _without_prefix({key.removeprefix(prefix): value for key, value in state.items()})
    return state


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, in one atomic step; a weight with two names under both."""
    weights, kept = {}, set[int]()
    for name, tensor in network.state_dict().items():
        weight = tensor.detach().cpu().contiguous()
        weights[name] = weight.clone() if weight.data_ptr() in kept else weight
        kept.add(weight.data_ptr())
    with atomic_file(path) as part:
        save_file(weights, part)


def checkpoint_digest(path: Path) -> str:
    """Compute the SHA-256 of a checkpoint file, to know it again."""
    with fetch_local_copy(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load a checkpoint into a network, every key and shape of it.

    Raises:
        InputError: Keys or shapes differ, or weights are not finite; the message lists which.
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
    found = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise InputError(f"checkpoint {path} does not fit the network. Keys {'; '.join(found)}")
    broken = sorted(key for key, weight in state.items() if not weight.isfinite().all())
    if broken:
        raise InputError(f"checkpoint {path} holds weights that are not finite: {_some(broken)}")
    network.load_state_dict(state)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
