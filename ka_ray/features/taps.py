"""Read features inside a network by module path, and always leave the network as it was.

Shapes: B images, C channels of a tap, *space its height and width (none after a linear layer).
"""

import difflib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError


class Taps:
    """A context in which every forward pass of a network leaves the tapped outputs in ``features``.

    Args:
        network: Any module.
        paths: tap -> path of the module whose output is read.

    Raises:
        InputError: A path names no module of the network; the nearest ones are listed.

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
            self._handles.append(module.register_forward_hook(self._keep(tap)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep(self, tap: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(f"taps.{tap}: the module gives a {type(output).__name__}, not one tensor")
            # An in-place activation right behind the tap would overwrite it, so it is kept as a copy.
            self.features[tap] = output.detach().clone()

        return hook


def find_module(network: nn.Module, tap: str, path: str) -> nn.Module:
    """Find a module by its dotted path.

    Raises:
        InputError: There is none; names the nearest paths.
    """
    modules = [name for name, _ in network.named_modules() if name]
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=5, cutoff=0.3) or modules[:8]
        raise InputError(f"taps.{tap}: the network has no module {path!r}; near: {', '.join(near)}")
    return network.get_submodule(path)
