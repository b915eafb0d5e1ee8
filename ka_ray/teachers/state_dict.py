"""Find the state dict in the content of a checkpoint, and fit its keys to a network."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ka_ray.errors import InputError

EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "ema")
"""Keys under which training scripts keep an exponential moving average (EMA) of the weights."""

NESTED_EMA_KEYS = ("shadow", "shadow_params")
"""Keys under which classes for moving averages keep their weights."""

WEIGHTS_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
)
"""Keys under which training scripts keep the state dict in a larger checkpoint."""

WRAPPERS = frozenset({"module", "_orig_mod"})
"""Names that DistributedDataParallel and torch.compile insert into the keys of what they wrap."""

AVERAGED_MODEL_COUNTER = "n_averaged"
"""A buffer of ``torch.optim.swa_utils.AveragedModel``, which torchvision's training script saves."""


@dataclass(frozen=True)
class FoundWeights:
    """A state dict in a checkpoint.

    Attributes:
        state: Name of each weight or buffer -> tensor.
        where: Keys under which it is nested, joined by dots; empty at the top.
        is_ema: Whether it is a moving average of the weights.
        lightning: Whether PyTorch Lightning wrote the checkpoint.
    """

    state: Mapping[str, Tensor]
    where: str = ""
    is_ema: bool = False
    lightning: bool = False


def find_weights(content: Any) -> list[FoundWeights]:
    """Find the state dicts in a checkpoint: at the top or nested under common keys, moving averages first.

    Args:
        content: What :func:`ka_ray.teachers.checkpoint_file.read_checkpoint` returned.

    Returns:
        The state dicts, best first; empty if there is none.
    """
    lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    return list(_search(content, (), lightning))


def _search(content: Any, path: tuple[str, ...], lightning: bool) -> Iterator[FoundWeights]:
    if not isinstance(content, Mapping) or not content or len(path) > 3:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield FoundWeights(content, ".".join(path), bool(set(path) & set(EMA_KEYS)), lightning)
        return
    inside = NESTED_EMA_KEYS if set(path) & set(EMA_KEYS) else ()
    for key in (*EMA_KEYS, *inside, *WEIGHTS_KEYS):
        yield from _search(content.get(key), (*path, key), lightning)


@dataclass(frozen=True)
class FittedWeights:
    """A state dict whose keys are those of a network.

    Attributes:
        state: Name of each weight or buffer of the network -> tensor.
        change: What was changed in the keys, for the user; empty if nothing.
        left_out: Keys of the checkpoint that the network does not have, such as those of a loss function.
    """

    state: Mapping[str, Tensor]
    change: str = ""
    left_out: tuple[str, ...] = ()


def fit_weights(network: nn.Module, weights: FoundWeights) -> FittedWeights | None:
    """Load a state dict into a network, with the keys as they are or with prefixes changed.

    Each way is tried with ``load_state_dict(strict=True)``, so that whatever torch accepts is accepted: old
    state dicts without ``num_batches_tracked``, for example, which torch itself fills in.

    Args:
        network: The network. Loaded in place if any way fits, unchanged otherwise.
        weights: A state dict of :func:`find_weights`.

    Returns:
        The state dict that was loaded; None if no way fits.

    Raises:
        InputError: Several children of a LightningModule fit equally well.
    """
    before = copy.deepcopy(network.state_dict())
    for fitted in _ways_to_fit(weights, list(before)):
        try:
            network.load_state_dict(fitted.state, strict=True)
        except Exception:  # keys or shapes differ: RuntimeError; a network's own loading code raises others
            network.load_state_dict(before)
        else:
            return fitted
    return None


def _ways_to_fit(weights: FoundWeights, names: list[str]) -> Iterator[FittedWeights]:
    """Yield the state dict with changed keys, the least change first.

    Args:
        weights: The state dict.
        names: Names of the network's weights and buffers.
    """
    yield FittedWeights(weights.state)
    state = {key: value for key, value in weights.state.items() if key != AVERAGED_MODEL_COUNTER}
    prefixes = _shared_prefixes(state)
    for prefix in prefixes[1:]:
        renamed = {key.removeprefix(prefix): value for key, value in state.items()}
        yield FittedWeights(renamed, f"prefix {prefix!r} removed")
    # Wrappers of inner modules, and what the network has around its weights but the file has not: compare the
    # names without all of these.
    for prefix in prefixes:
        bare_keys = {_without_wrappers(key, prefix): key for key in state}
        for prefix_here in _shared_prefixes(names):
            bare_names = {_without_wrappers(name, prefix_here): name for name in names}
            unique = len(bare_names) == len(names) and len(bare_keys) == len(state)
            if unique and bare_keys.keys() <= bare_names.keys():
                renamed = {bare_names[bare]: state[key] for bare, key in bare_keys.items()}
                yield FittedWeights(renamed, "keys matched without the names of wrappers")
    if weights.lightning:
        yield from _lightning_parts(state)


def list_states(weights: FoundWeights) -> Iterator[Mapping[str, Tensor]]:
    """Yield the state dicts that a network could have, whose names are not known.

    Args:
        weights: The state dict of a checkpoint.

    Yields:
        The state dict without names of wrappers, with fewer and fewer of the prefixes that all keys share;
        then that of each child of a LightningModule.
    """
    state = {key: value for key, value in weights.state.items() if key != AVERAGED_MODEL_COUNTER}
    for prefix in _shared_prefixes(state)[::-1]:
        yield {_without_wrappers(key, prefix): value for key, value in state.items()}
    if weights.lightning:
        children = dict.fromkeys(key.partition(".")[0] for key in state)
        for child in children:
            yield {
                _without_wrappers(key, f"{child}."): value
                for key, value in state.items()
                if key.startswith(f"{child}.")
            }


def _lightning_parts(state: Mapping[str, Tensor]) -> Iterator[FittedWeights]:
    """Yield the weights of each child of a LightningModule: the network beside losses and metrics."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        child, _, rest = key.partition(".")
        parts.setdefault(child, {})[rest] = value
    # A moving average comes first.
    for child in sorted(parts, key=lambda name: (not name.startswith("ema"), name)):
        twins = [name for name in parts if parts[name].keys() == parts[child].keys() and name != child]
        if twins and not child.startswith("ema") and len(parts[child]) > 1:
            raise InputError(
                f"its children {', '.join(sorted([child, *twins]))} have the same weights' names; save only "
                "the one that is the teacher"
            )
        others = tuple(sorted(key for key in state if not key.startswith(f"{child}.")))
        yield FittedWeights(parts[child], f"prefix '{child}.' removed", others)


def _shared_prefixes(keys: Iterable[str]) -> list[str]:
    """Return the prefixes (each ends with a dot) that all keys share: none, one name, two names ..."""
    prefixes, rests = [""], list(keys)
    while (
        all("." in rest for rest in rests) and len(heads := {rest.partition(".")[0] for rest in rests}) == 1
    ):
        prefixes.append(f"{prefixes[-1]}{heads.pop()}.")
        rests = [rest.partition(".")[2] for rest in rests]
    return prefixes


def _without_wrappers(key: str, prefix: str) -> str:
    parts = key.removeprefix(prefix).split(".")
    return ".".join(part for part in parts if part not in WRAPPERS)


def describe_mismatch(network: nn.Module, weights: FoundWeights, num_classes: int | None) -> str:
    """Return how a state dict differs from a network.

    Args:
        network: The network.
        weights: The state dict that does not fit.
        num_classes: The number of classes that the config names; None if they are not known.

    Returns:
        A part of a sentence that lists keys; or, if only the last layer has another number of outputs, says
        how many classes the checkpoint has.
    """
    expected = network.state_dict()
    # Of all ways to change the keys, that with which most of them are the network's.
    ways = [fitted.state for fitted in _ways_to_fit(weights, list(expected))]
    state = max(ways, key=lambda way: len(expected.keys() & way.keys()))
    shapes = {
        key: (list(state[key].shape), list(expected[key].shape))
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    }
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    outputs = {(of_file[0], here[0]) for of_file, here in shapes.values() if of_file[1:] == here[1:] and here}
    if shapes and not missing and not unexpected and len(outputs) == 1:
        in_file, here = outputs.pop()
        if here == num_classes:
            return f"it has {in_file} classes, but the config names {here}; keys: {', '.join(shapes)}"
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": [f"{key} {there} instead of {here}" for key, (there, here) in shapes.items()],
    }
    parts = [f"{len(keys)} {problem}: {shorten(keys)}" for problem, keys in problems.items() if keys]
    return f"keys: {'; '.join(parts)}"


def shorten(keys: list[str]) -> str:
    """Return the first keys of a list, and how many more there are."""
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
