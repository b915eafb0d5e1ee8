"""Load a checkpoint into a network, and save the weights of a network."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ka_ray.errors import InputError
from ka_ray.storage.cache import fetch_local_copy
from ka_ray.storage.files import atomic_file
from ka_ray.teachers.checkpoint_file import read_checkpoint
from ka_ray.teachers.state_dict import (
    EMA_KEYS,
    WEIGHTS_KEYS,
    FittedWeights,
    FoundWeights,
    describe_mismatch,
    find_weights,
    fit_weights,
    list_states,
    shorten,
)
from ka_ray.teachers.transformers_networks import is_transformers_network, load_by_transformers


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


def load_checkpoint(network: nn.Module, path: Path, num_classes: int | None = None) -> str:
    """Load a checkpoint into a network: every weight of the network must be in it.

    Args:
        network: Network to load into, in place.
        path: Checkpoint, see :func:`ka_ray.teachers.checkpoint_file.read_checkpoint`.
        num_classes: The number of classes that the config names, for the error message; None if not known.

    Returns:
        What was done besides loading the file as it is, for the user: ``state_dict_ema, a moving average of
        the weights; prefix 'module.' removed``. Empty if nothing was.

    Raises:
        InputError: The file cannot be read or contains no state dict; or keys or shapes differ from the
            network's, or weights are not finite, and the message lists them.
    """
    content = read_checkpoint(path)
    candidates = find_weights(content)
    if not candidates:
        raise InputError(_no_weights(path, content))
    try:
        for weights in candidates:
            fitted = fit_weights(network, weights)
            if fitted is not None:
                _check_finite(fitted)
                skipped = [other.where for other in candidates if other.is_ema and not weights.is_ema]
                return _describe(weights, fitted, skipped)
        if is_transformers_network(network):
            load_by_transformers(network, candidates[0].state)
            return "loaded by transformers"
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}") from None
    # Of the raw weights, because a moving average can leave out what was not trained.
    problem = describe_mismatch(network, candidates[-1], num_classes)
    raise InputError(
        f"checkpoint {path} does not fit the network: {problem}. Check the teacher's network, its arguments "
        "and its classes"
    )


def load_fitting_weights(network: nn.Module, path: Path) -> tuple[str, ...]:
    """Load those weights of a checkpoint that fit a network by name and shape, as fine-tuning does.

    Args:
        network: Network to load into, in place.
        path: Checkpoint, see :func:`ka_ray.teachers.checkpoint_file.read_checkpoint`.

    Returns:
        Names of the network's weights that the checkpoint does not have, such as those of another last layer.

    Raises:
        InputError: The file cannot be read, or not even half of the network's weights are in it.
    """
    expected = network.state_dict()
    shapes = {key: value.shape for key, value in expected.items()}
    states = [state for weights in find_weights(read_checkpoint(path)) for state in list_states(weights)]
    fitting = [
        {key: value for key, value in state.items() if shapes.get(key) == value.shape} for state in states
    ]
    best = max(fitting, key=len, default={})
    missing = tuple(key for key in expected if key not in best)
    if 2 * len(best) < len(expected):
        raise InputError(
            f"checkpoint {path} has {len(best)} of the network's {len(expected)} weights; it lacks "
            f"{shorten(list(missing))}"
        )
    network.load_state_dict({**expected, **best})
    return missing


def _check_finite(fitted: FittedWeights) -> None:
    # Training that diverged leaves NaN weights; without this check they would surface only much later.
    broken = sorted(key for key, weight in fitted.state.items() if not weight.isfinite().all())
    if broken:
        raise InputError(f"contains weights that are NaN or infinite: {shorten(broken)}")


def _describe(weights: FoundWeights, fitted: FittedWeights, skipped: list[str]) -> str:
    """Return what was done to load a checkpoint.

    Args:
        weights: The state dict that was loaded.
        fitted: How its keys were changed.
        skipped: Where the file has moving averages that do not fit the network.
    """
    is_ema = weights.is_ema or fitted.change.startswith("prefix 'ema")
    where = weights.where + (", a moving average of the weights" if is_ema else "")
    unused = f"the moving average under {', '.join(skipped)} does not fit and is not used" if skipped else ""
    left_out = f"left out: {shorten(list(fitted.left_out))}" if fitted.left_out else ""
    return "; ".join(part for part in (where, fitted.change, left_out, unused) if part)


def _no_weights(path: Path, content: Any) -> str:
    """Return the message about a file without a state dict: what it contains instead."""
    if isinstance(content, Mapping):
        found = (
            f"a dict with the keys {shorten([str(key) for key in content])}" if content else "an empty dict"
        )
    else:
        found = f"a {type(content).__name__}"
    return (
        f"checkpoint {path} contains no state dict (names -> tensors), but {found}. A state dict is looked "
        f"for at the top and under {', '.join((*WEIGHTS_KEYS, *EMA_KEYS))}"
    )
