"""Read features inside a network by module path, without changing the network.

Shapes: B images, C channels of a tap, ``*space`` its height and width (empty after a linear layer).
"""

import difflib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError


class Taps:
    """Context manager that reads the outputs of some modules during the forward passes of a network.

    It registers forward hooks on entry and removes them on exit, also after an exception.

    Args:
        network: Network to read from; any module.
        paths: Tap name -> dotted path of the module whose output is read.

    Attributes:
        features: Tap name -> output of the latest forward pass, ``[B, C, *space]``, without gradient.

    Raises:
        InputError: The network has no module at a path; the message lists the most similar paths.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with Taps(network, {"hidden": "0"}) as taps:
        ...     _ = network(torch.zeros(2, 4))
        >>> taps.features["hidden"].shape
        torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, paths: Mapping[str, str]) -> None:
        self.features: dict[str, Tensor] = {}
        self._modules = {tap: find_module(network, tap, path) for tap, path in paths.items()}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Taps":
        for tap, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._make_hook(tap)))
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _make_hook(self, tap: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"taps.{tap}: the module outputs a {type(output).__name__}, but a tap needs a single "
                    "tensor; choose another module"
                )
            # Copy the output, because an in-place activation behind the tap would overwrite it.
            self.features[tap] = output.detach().clone()

        return hook


def find_module(network: nn.Module, tap: str, path: str) -> nn.Module:
    """Return the module at a dotted path.

    Args:
        network: Network to search.
        tap: Name of the tap, for the error message.
        path: Dotted path of the module, as in ``network.named_modules()``.

    Raises:
        InputError: The network has no such module; the message lists the most similar paths.
    """
    modules = [name for name, _ in network.named_modules() if name]
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=5, cutoff=0.3) or modules[:8]
        raise InputError(
            f"taps.{tap}: the network has no module {path!r}. Similar paths: {', '.join(near) or 'none'}"
        )
    return network.get_submodule(path)
