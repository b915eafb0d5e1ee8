"""Trace a network with torch.fx, and tell what its modules and operations do."""

import inspect
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from ka_ray.errors import InputError

_CHANCES = {"StochasticDepth": "p", "DropPath": "drop_prob"}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def trace(network: nn.Module) -> tuple[fx.Graph, dict[str, Any]]:
    """Trace a network in eval mode, down to modules without children and those of torch.nn.

    Arguments of ``forward`` with a default keep it.

    Returns:
        The graph, and module path -> what the module's last call returned.

    Raises:
        InputError: torch.fx cannot trace it.
    """
    tracer = _Tracer()
    arguments = inspect.signature(network.forward).parameters.values()
    defaults = {a.name: a.default for a in arguments if a.default is not inspect.Parameter.empty}
    with evaluating(network):
        try:
            return tracer.trace(network, defaults or None), tracer.results
        except Exception as error:  # whatever the network does with a value that it gets no number of
            reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
            raise InputError(
                f"student.network: torch.fx cannot trace it ({reason}); what its forward computes may not "
                "depend on the values in the image (no if or loop over them), and it takes one tensor"
            ) from None


class _Tracer(fx.Tracer):
    """Stops at modules without children, and remembers what every module returned."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, fx.GraphModule):
            return False
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        self.results[self.path_of_module(m)] = result.node if isinstance(result, fx.Proxy) else None
        return result


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and every module back in its own mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def drop_probability_attr(module: nn.Module) -> str | None:
    """Name the attribute that says how often a module drops its input; None if it is no such module."""
    name = "p" if isinstance(module, nn.modules.dropout._DropoutNd) else _CHANCES.get(type(module).__name__)
    return name if name and hasattr(module, name) else None


def is_in_place(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node of a root's graph overwrites its first input."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if not node.op.startswith("call"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    ends_so = name.endswith("_") and not name.endswith("__")
    return ends_so or node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))
