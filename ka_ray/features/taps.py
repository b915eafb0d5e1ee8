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
from ka_ray.features.layouts import parse_tap_path


class Taps:
    """Context manager that reads the outputs of some modules during the forward passes of a network.

    It registers forward hooks on entry and removes them on exit, also after an exception. Of a module that
    returns several values, as those of transformers do, the first one is read.

    Args:
        network: Network to read from; any module.
        paths: Tap name -> dotted path of the module whose output is read. A path that ends in a layout, such
            as ``blocks.5:prefix=1``, gives features ``[B, C, *space]``; any other gives the output as it is.

    Attributes:
        features: Tap name -> features of the latest forward pass, without gradient.

    Raises:
        InputError: The network has no module at a path (the message lists the most similar paths), or a path
            ends in an unknown layout.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with Taps(network, {"hidden": "0"}) as taps:
        ...     _ = network(torch.zeros(2, 4))
        >>> taps.features["hidden"].shape
        torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, paths: Mapping[str, str]) -> None:
        self.features: dict[str, Tensor] = {}
        parsed = {tap: parse_tap_path(tap, path) for tap, path in paths.items()}
        self._modules = {tap: find_module(network, tap, path) for tap, (path, _) in parsed.items()}
        self._layouts = {tap: layout for tap, (_, layout) in parsed.items()}
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
        layout = self._layouts[tap]

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is None:
                raise InputError(
                    f"taps.{tap}: the module outputs a {type(output).__name__}, but a tap needs a tensor, or "
                    "several values of which the first is one; choose another module"
                )
            features = tensor if layout is None else layout.split(tensor)[0]
            # Copy the output, because an in-place activation behind the tap would overwrite it.
            self.features[tap] = features.detach().clone()

        return hook


def _first_tensor(output: Any) -> Tensor | None:
    """Return a module's output, or the first of several outputs; None if that is no tensor."""
    # The outputs of transformers are mappings, whose first value is the hidden state behind the last layer.
    values = list(output.values()) if isinstance(output, Mapping) else output
    first = values[0] if isinstance(values, list | tuple) and values else values
    return first if isinstance(first, Tensor) else None


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
