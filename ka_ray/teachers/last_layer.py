"""Find the layer that computes a classifier's scores; its input is the embedding of an image.

Shapes: B images, D channels of the embedding, K classes.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def find_last_layer(network: nn.Module, images: Tensor, num_classes: int) -> str | None:
    """Return the path of the last linear or conv layer that a network calls, if it has one output per class.

    Args:
        network: The network in eval mode.
        images: Input of the network, `[B, C, H, W]`; only the shape matters.
        num_classes: K.

    Returns:
        The path; None if the last layer has other outputs, is called twice, or is the whole network.
    """
    called: list[str] = []

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        called.append(path)

    layers = {path: m for path, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    handles = [module.register_forward_hook(partial(note, path)) for path, module in layers.items()]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    last = called[-1] if called else ""
    if not last or called.count(last) > 1 or len(layers[last].weight) != num_classes:
        return None
    return last


class ReadEmbedding:
    """Context manager that reads the input of a network's last layer during forward passes.

    Args:
        network: The network.
        path: Path of its last layer, as :func:`find_last_layer` returns it.

    Attributes:
        embedding: `[B, D]` of the latest forward pass; maps are averaged over their positions.
    """

    embedding: Tensor

    def __init__(self, network: nn.Module, path: str) -> None:
        self._layer = network.get_submodule(path)

    def __enter__(self) -> "ReadEmbedding":
        self._handle = self._layer.register_forward_pre_hook(self._read)
        return self

    def __exit__(self, *raised: object) -> None:
        self._handle.remove()

    def _read(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given = inputs[0].detach()
        if given.dim() == 4:
            given = given.mean(dim=(2, 3))
        # A linear layer may act on each position or token: then the channels are last.
        self.embedding = given.flatten(1, -2).mean(dim=1) if given.dim() > 2 else given.clone()
