"""Cut any network that torch.fx can trace into a chain of stages between its taps.

The network can be cut at a value if everything after it is computed from this one value.

In training, the stages differ from the network in two ways. Their dropout and stochastic depth modules drop
nothing, because the targets are soft scores. And where a ``forward`` depends on ``self.training`` (functional
dropout, for example), the stages always behave as in eval mode, because the network is traced in eval mode.
Functional dropout stays only inside of modules that torch.fx cannot trace, which are called as they are.

Shapes: B images, K classes.
"""

from collections.abc import Mapping

from torch import fx, nn

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.student.trace import drop_probability_attr
from ka_ray.student.value_chain import ValueChain


def cut_into_stages(network: nn.Module, paths: Mapping[str, str]) -> nn.ModuleDict:
    """Cut a network at its taps: one stage leads to each tap, and the last one, "scores", to the scores.

    Run one after the other, the stages compute exactly what the network computes in eval mode. They share the
    network's modules and parameter names, so a change to one is a change to the other.

    Args:
        network: Maps images `[B, 3, H, W]` to scores `[B, K]`.
        paths: tap -> path, as in ``named_modules()``, of the module whose (last call's) output is the tap.

    Returns:
        tap -> stage, in the order of the network; each stage has one input and one output.

    Raises:
        InputError: torch.fx cannot trace the network, or it cannot be cut at one of the taps.

    Example:
        >>> stages = cut_into_stages(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), {"hidden": "0"})
        >>> {tap: list(stage.state_dict()) for tap, stage in stages.items()}
        {'hidden': ['0.weight', '0.bias'], 'scores': ['1.weight', '1.bias']}
    """
    chain = ValueChain(network)
    cuts: dict[fx.Node, str] = {}
    for tap, path in paths.items():
        node = chain.find(tap, path)
        other = cuts.setdefault(node, tap)
        if other != tap:
            raise InputError(
                f"taps.{tap}: {path!r} returns the same value as taps.{other}, {paths[other]!r}; remove one "
                "of the two taps"
            )
    for module in network.modules():
        if name := drop_probability_attr(module):
            setattr(module, name, 0.0)
    stages, stage_input = nn.ModuleDict(), chain.image
    for node in sorted(cuts, key=chain.position.__getitem__):
        stages[cuts[node]] = chain.build_stage(stage_input, node)
        stage_input = node
    stages[SCORES] = chain.build_stage(stage_input, chain.values[-1])
    return stages


def find_valid_taps(network: nn.Module) -> list[str]:
    """List the module paths at whose output a network can be cut, from the image to the scores.

    A value that several modules return is listed once, by the shortest path (``layer1``, not
    ``layer1.1.relu``), so :func:`cut_into_stages` accepts all of them together.
    """
    return ValueChain(network).valid_paths()
