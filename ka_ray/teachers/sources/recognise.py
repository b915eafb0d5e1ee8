"""Recognise the architecture of a checkpoint by the names and shapes of its weights.

A state dict does not say which network it belongs to. So it is compared with every classifier of torchvision
and timm, which are built without memory for their weights. Several architectures can have the same weights
but compute something else, such as EfficientNet with and without TensorFlow's padding: the user is asked.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ka_ray.errors import InputError
from ka_ray.teachers.networks import TIMM, build_network, import_timm
from ka_ray.teachers.outputs import find_scores
from ka_ray.teachers.state_dict import FoundWeights, fit_weights, list_states, shorten

MARKED_CLASSES = 1777
"""Number of classes of the networks that are compared. A prime that no network has as a width marks, in the
shapes of their weights, what depends on the number of classes."""

SAME_FUNCTION = 1e-4
"""Two networks with equal weights are the same if their scores differ less, relative to the largest one."""

DEFAULT_SIZE = 224
"""Height and width, in pixels, of the image on which such networks are compared."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name of each weight -> its shape."""


@dataclass(frozen=True)
class Architecture:
    """A network that the weights of a checkpoint fit.

    Attributes:
        network: Its name in the config.
        num_classes: Number of classes of the checkpoint.
        arguments: Keyword arguments of the network.
        equals: Other names whose networks compute the same.
        others: Names of networks that the weights fit, too, but that were not named or are never published.
    """

    network: str
    num_classes: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    equals: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def recognise_architecture(
    weights: Sequence[FoundWeights], hints: Collection[str] = ()
) -> Architecture | None:
    """Find the torchvision or timm network whose weights a checkpoint holds.

    Args:
        weights: The state dicts of a checkpoint, best first.
        hints: Names of architectures that stand beside the weights; a fitting network of such a name is
            chosen.

    Returns:
        The network; of several that compute the same, the first, torchvision's before timm's. Networks of
        which nobody has published weights count only if no other fits. None if no network fits.

    Raises:
        InputError: The weights fit networks that compute different scores; the message lists their names.
    """
    for found in weights:
        for state in list_states(found):
            fitting = list(_find_fitting(state))
            named = [one for one in fitting if {one.network, one.network.removeprefix(TIMM)} & set(hints)]
            published = [one for one in fitting if _is_published(one.network)]
            if fitting:
                chosen = _choose(named or published or fitting, FoundWeights(state))
                known = {chosen.network, *chosen.equals}
                others = tuple(one.network for one in fitting if one.network not in known)
                return replace(chosen, others=others)
    return None


def _find_fitting(state: Mapping[str, Tensor]) -> Iterator[Architecture]:
    shapes = _list_shapes(state)
    for network, arguments in _list_candidates(shapes):
        num_classes = _compare(_shapes_of(network, tuple(sorted(arguments.items()))), shapes)
        if num_classes is not None:
            yield Architecture(network, num_classes, arguments)


def _is_published(network: str) -> bool:
    """Return whether there are published weights of a network, from which people fine-tune."""
    if not network.startswith(TIMM):
        return True
    return bool(import_timm(network).is_model_pretrained(network.removeprefix(TIMM)))


COUNTER = "num_batches_tracked"
"""Buffer of batch norms that old checkpoints lack."""


def _list_candidates(shapes: Shapes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and arguments of the networks whose first and last layers have the names of the file's."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        if name in ("googlenet", "inception_v3"):  # the auxiliary heads are often left out
            yield from ((name, {"aux_logits": aux, "init_weights": False}) for aux in (True, False))
        else:
            yield name, {}
    try:
        import timm
        from timm.models import get_pretrained_cfg
    except ImportError:
        return
    for name in timm.list_models():
        cfg = get_pretrained_cfg(name, allow_unregistered=True)
        layers = [layer for key in ("first_conv", "classifier") for layer in _listed(getattr(cfg, key, None))]
        if all(f"{layer}.weight" in shapes for layer in layers):
            yield f"{TIMM}{name}", {}


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


class _WithoutMemory(TorchFunctionMode):
    """Allocates the weights of networks that are built inside on the device ``meta``, without initial values.

    ``torch.device("meta")`` would also apply to the small tensors from which some constructors read numbers,
    and would trace every initialisation, which takes longer than to build the network.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        name = getattr(function, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return function(*args, **kwargs)


@lru_cache(maxsize=2048)
def _shapes_of(network: str, arguments: tuple[tuple[str, Any], ...]) -> Shapes:
    return _measure_shapes(network, dict(arguments), MARKED_CLASSES)


def _measure_shapes(network: str, arguments: Mapping[str, Any], num_classes: int) -> Shapes:
    """Return the shapes of a network's weights; empty if it cannot be built."""
    try:
        with _WithoutMemory():
            state = build_network(network, arguments, num_classes).state_dict()
    except Exception:  # a network that needs values of tensors or an optional package
        return {}
    return _list_shapes(state)


def _list_shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(COUNTER)}


def count_classes(network: str, arguments: Mapping[str, Any], weights: Sequence[FoundWeights]) -> int | None:
    """Return the number of classes with which a network has the weights of a checkpoint.

    Args:
        network: Name of the network in the config, whose builder takes ``num_classes``.
        arguments: Its other keyword arguments.
        weights: The state dicts of the checkpoint, best first.

    Returns:
        The number; 0 if the weights are those of a timm network without its head; None if none fits.
    """
    marked = _measure_shapes(network, arguments, MARKED_CLASSES)
    headless = _measure_shapes(network, arguments, 0) if network.startswith(TIMM) else {}
    for found in weights:
        for state in list_states(found):
            shapes = _list_shapes(state)
            number = _compare(marked, shapes)
            if number is not None:
                return number
            if headless == shapes:
                return 0
    return None


def _compare(expected: Shapes, shapes: Shapes) -> int | None:
    """Return the number of classes with which a network has the shapes of a checkpoint; None if with none."""
    if expected.keys() != shapes.keys():
        return None
    found = set[int]()
    for key, shape in expected.items():
        if len(shape) != len(shapes[key]):
            return None
        for here, there in zip(shape, shapes[key], strict=True):
            if here == MARKED_CLASSES:
                found.add(there)
            elif here != there:
                return None
    return found.pop() if len(found) == 1 else None


def _choose(fitting: list[Architecture], weights: FoundWeights) -> Architecture:
    """Return the first of several architectures if all compute the same."""
    if not all(value.isfinite().all() for value in weights.state.values()):
        raise InputError("its weights are NaN or infinite")
    first, others = fitting[0], fitting[1:]
    if not others:
        return first
    scores = [_score_noise(architecture, weights) for architecture in fitting]
    reference = scores[0]
    for other in scores[1:]:
        if (
            reference is None
            or other is None
            or not torch.allclose(other, reference, rtol=0, atol=SAME_FUNCTION * float(reference.abs().max()))
        ):
            names = [architecture.network for architecture in fitting]
            raise InputError(
                f"its weights fit {shorten(names)}, which compute different scores; set `network` to the one "
                "that was trained"
            )
    return Architecture(
        first.network, first.num_classes, first.arguments, tuple(other.network for other in others)
    )


def _score_noise(architecture: Architecture, weights: FoundWeights) -> Tensor | None:
    """Return the scores of one image of noise; None if the network does not take its size."""
    network: nn.Module = build_network(architecture.network, architecture.arguments, architecture.num_classes)
    fit_weights(network, weights)
    size = getattr(network, "default_cfg", {}).get("input_size", (3, DEFAULT_SIZE, DEFAULT_SIZE))
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            return find_scores(network.eval()(image), architecture.num_classes)
    except Exception:
        return None
