"""Trace a network with torch.fx, and recognise what its modules and operations do."""

import inspect
import operator
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from ka_ray.errors import InputError

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# By name, because torchvision's and timm's classes are no subclasses of torch's, and timm may not be
# installed.
_DROP_PATHS = {"StochasticDepth": "p", "DropPath": "drop_prob"}
_IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def trace_network(network: nn.Module) -> tuple[fx.Graph, dict[str, Any]]:
    """Trace a network in eval mode, down to modules without children and modules of torch.nn.

    Arguments of ``forward`` behind the first one that have a default are fixed to it. A module inside the
    network that torch.fx cannot trace, such as a transformer block that depends on the size of its input, is
    one step of the graph; the network cannot be cut inside of it.

    Returns:
        The graph, and module path -> node with the output of the module's last call; None if the module
        returns something else than one tensor, such as a tuple.

    Raises:
        InputError: torch.fx cannot trace the network.
    """
    others = [*inspect.signature(network.forward).parameters.values()][1:]  # the first one is the image
    defaults = {a.name: a.default for a in others if a.default is not inspect.Parameter.empty}
    opaque = set[nn.Module]()
    with eval_mode(network):
        while True:
            tracer = _Tracer(opaque)
            try:
                return tracer.trace(network, defaults or None), tracer.results
            except (
                Exception
            ) as error:  # user code can raise anything when it gets a proxy instead of a tensor
                if tracer.failed is not None:  # try again without looking into this module
                    opaque.add(tracer.failed)
                    continue
                reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
                raise InputError(
                    f"student.network: torch.fx cannot trace it ({reason}); its forward must take one "
                    "tensor, and may not depend on the values in the image (no `if` or `for` over them)"
                ) from None


class _Tracer(fx.Tracer):
    """A tracer that stops at modules without children and records what every module returned.

    Args:
        opaque: Further modules to stop at.

    Attributes:
        results: Module path -> node with the output of the module's last call; None if it is no tensor.
        failed: The innermost module that could not be traced; None if there is none inside the network.
    """

    def __init__(self, opaque: Collection[nn.Module]) -> None:
        super().__init__()
        self.results: dict[str, Any] = {}
        self.failed: nn.Module | None = None
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, fx.GraphModule):  # a part that ka_ray cut out of a network: trace what is inside
            return False
        return m in self._opaque or not any(m.children()) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None and not self.is_leaf_module(m, self.path_of_module(m)):
                self.failed = m
            raise
        self.results[self.path_of_module(m)] = result.node if isinstance(result, fx.Proxy) else None
        return result


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode; afterwards restore the mode of every single module.

    ``network.train(was_training)`` would not do that: a user may have frozen some of the batch norms.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def drop_probability_attr(module: nn.Module) -> str | None:
    """Return the name of the attribute with a module's drop probability; None if the module drops nothing."""
    name = "p" if isinstance(module, _DROPOUTS) else _DROP_PATHS.get(type(module).__name__)
    return name if name and hasattr(module, name) else None


def is_in_place(root: nn.Module, node: fx.Node) -> bool:
    """Return whether a node overwrites its first input.

    Args:
        root: The module that the graph was traced from.
        node: A node of the graph.
    """
    if node.op == "call_module":
        # A module that is one step of the graph may hold an in-place activation that gets the module's input.
        return any(getattr(m, "inplace", False) for m in root.get_submodule(str(node.target)).modules())
    if not node.op.startswith("call"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    # torch marks in-place functions by a trailing underscore: `add_`, but not `__add__`.
    named_in_place = name.endswith("_") and not name.endswith("__")
    return named_in_place or node.target in _IN_PLACE_OPERATORS or bool(node.kwargs.get("inplace"))
