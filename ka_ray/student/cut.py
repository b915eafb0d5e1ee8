"""Cut any network that torch.fx can trace into a chain of stages between its taps.

The network can be cut at a value if everything after it is computed from this one value.

In training, the stages differ from the network in two ways. Their dropout and stochastic depth modules drop
nothing, because the targets are soft scores. And where a ``forward`` depends on ``self.training`` (functional
dropout, for example), the stages always behave as in eval mode, because the network is traced in eval mode.
Functional dropout stays only inside of modules that torch.fx cannot trace, which are called as they are.

Shapes: B images, K classes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.student.trace import drop_probability_attr
from ka_ray.student.value_chain import ValueChain
from ka_ray.teachers.outputs import find_scores


def cut_into_stages(
    network: nn.Module, paths: Mapping[str, str], num_classes: int | None = None
) -> nn.ModuleDict:
    """Cut a network at its taps: one stage leads to each tap, and the last one, "scores", to the scores.

    Run one after the other, the stages compute exactly what the network computes in eval mode. They share the
    network's modules and parameter names, so a change to one is a change to the other.

    Args:
        network: Maps images `[B, 3, H, W]` to scores `[B, K]`.
        paths: tap -> path, as in ``named_modules()``, of the module whose (last call's) output is the tap.
        num_classes: K. Without taps, a network that torch.fx cannot trace is one stage; it may return
            more than the scores. None: it is refused.

    Returns:
        tap -> stage, in the order of the network; each stage has one input and one output.

    Raises:
        InputError: torch.fx cannot trace the network, or it cannot be cut at one of the taps.

    Example:
        >>> stages = cut_into_stages(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), {"hidden": "0"})
        >>> {tap: list(stage.state_dict()) for tap, stage in stages.items()}
        {'hidden': ['0.weight', '0.bias'], 'scores': ['1.weight', '1.bias']}
    """
    try:
        chain = ValueChain(network)
    except InputError:
        if paths or num_classes is None:
            raise
        return _as_one_stage(network, num_classes)
    cuts = _find_cuts(chain, paths)
    _drop_nothing(network)
    stages, stage_input = nn.ModuleDict(), chain.image
    for node in sorted(cuts, key=chain.position.__getitem__):
        stages[cuts[node]] = chain.build_stage(stage_input, node)
        stage_input = node
    stages[SCORES] = chain.build_stage(stage_input, chain.values[-1])
    return stages


def _find_cuts(chain: ValueChain, paths: Mapping[str, str]) -> dict[fx.Node, str]:
    cuts: dict[fx.Node, str] = {}
    for tap, path in paths.items():
        node = chain.find(tap, path)
        other = cuts.setdefault(node, tap)
        if other != tap:
            raise InputError(
                f"taps.{tap}: {path!r} returns the same value as taps.{other}, {paths[other]!r}; remove one "
                "of the two taps"
            )
    return cuts


def _as_one_stage(network: nn.Module, num_classes: int) -> nn.ModuleDict:
    """Make a whole network the only stage, with its own names of weights."""
    _drop_nothing(network)
    network.register_forward_hook(partial(_return_scores, num_classes))
    return nn.ModuleDict({SCORES: network})


def _return_scores(num_classes: int, network: nn.Module, inputs: Any, output: Any) -> Tensor:
    return find_scores(output, num_classes)


def _drop_nothing(network: nn.Module) -> None:
    for module in network.modules():
        if name := drop_probability_attr(module):
            setattr(module, name, 0.0)


def find_valid_taps(network: nn.Module) -> list[str]:
    """List the module paths at whose output a network can be cut, from the image to the scores.

    A value that several modules return is listed once, by the shortest path (``layer1``, not
    ``layer1.1.relu``), so :func:`cut_into_stages` accepts all of them together.
    """
    return ValueChain(network).valid_paths()
