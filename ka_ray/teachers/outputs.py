"""Find the scores in what a network returns: not all networks return a single tensor.

Shapes: B images, K classes.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.teachers.activations import to_scores

LOGITS = "logits"
"""Name of the scores in the outputs of transformers and of torchvision's networks with auxiliary heads."""


def find_scores(output: Any, num_classes: int, key: str | int | None = None) -> Tensor:
    """Return the scores in the output of a network's forward pass.

    Args:
        output: A tensor; or a tuple, list, dict or dataclass of outputs, such as those of a network with
            auxiliary heads in training.
        num_classes: K, the number of classes.
        key: Name or position of the scores in the output. None: the part named ``logits``, or else the only
            tensor of the shape ``[B, K]``.

    Returns:
        The scores, ``[B, K]``.

    Raises:
        InputError: The output has no part that can be the scores, or several; the message lists all parts.
    """
    parts = {0: output} if isinstance(output, Tensor) else _parts(output)
    fitting = {
        name: part
        for name, part in parts.items()
        if isinstance(part, Tensor) and part.dim() == 2 and part.shape[1] == num_classes
    }
    found = key
    if key is None:
        found = LOGITS if LOGITS in fitting else next(iter(fitting)) if len(fitting) == 1 else None
    if found in fitting:
        return fitting[found]
    # What follows is only reached before a run starts: every network is tried on one image then.
    if isinstance(output, Tensor):
        raise InputError(
            f"`classes` names {num_classes} classes, but the network outputs {tuple(output.shape[1:])} per "
            "image; it must be one score per class"
        )
    shapes = ", ".join(f"{name}: {_shape(part)}" for name, part in parts.items()) or type(output).__name__
    if key is None and fitting:
        raise InputError(f"the network returns {shapes}; set `output` to the one that is the scores")
    wanted = "one of them" if key is None else f"`output: {key}`"
    raise InputError(f"the network returns {shapes}; expected {wanted} to be {num_classes} scores per image")


def _parts(output: Any) -> dict[Any, Any]:
    """Return the parts of a structured output by their names, or by their positions if they have no names."""
    if isinstance(output, Mapping):
        return dict(output)
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, tuple) and hasattr(output, "_fields"):  # a named tuple
        return dict(zip(output._fields, output, strict=True))
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {}


def _shape(part: Any) -> str:
    return str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__


class SelectScores(nn.Module):
    """Last module behind a network: from what the network returns to its scores; see :func:`find_scores`.

    Args:
        num_classes: K, the number of classes.
        key: Name or position of the scores in the output; None: found by their shape.
        final_activation: What the network ends in, see :func:`ka_ray.teachers.activations.to_scores`.
    """

    def __init__(self, num_classes: int, key: str | int | None, final_activation: str | None = None) -> None:
        super().__init__()
        self.num_classes, self.key, self.final_activation = num_classes, key, final_activation

    def forward(self, output: Any) -> Tensor:
        """Return the scores ``[B, K]`` in the output of a network."""
        return to_scores(find_scores(output, self.num_classes, self.key), self.final_activation)
