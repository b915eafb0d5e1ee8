"""How a module's output holds features, and how features become the output again.

Networks keep their features as maps ``[B, C, height, width]``, as maps with the channels last (Swin), or as
tokens ``[B, N, C]``: prefix tokens (a class token, register tokens), then one token per patch, row by row
(ViT). At a tap, all of them become maps or vectors.

Shapes: B images, C channels, N tokens of an image, P prefix tokens among them, ``*space`` height and width in
positions (empty for a vector).
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ka_ray.errors import InputError

RULES = "`:cls`, `:prefix=NUMBER`, `:nhwc` or `:nchw`"
"""What may follow the module path of a tap."""


@dataclass(frozen=True)
class Layout:
    """The layout of a module's output, and which part of it is the features.

    Attributes:
        kind: ``plain``: the output is the features, ``[B, C, *space]``. ``nhwc``: a map with the channels
            last. ``patches``: the patch tokens are a square map. ``cls``: the first token is a vector.
        prefix: P, the number of tokens in front of the patch tokens; only for ``patches``.

    Example:
        >>> features, rest = Layout("patches", prefix=1).split(torch.zeros(2, 10, 8))
        >>> features.shape, rest.shape
        (torch.Size([2, 8, 3, 3]), torch.Size([2, 1, 8]))
        >>> Layout("patches", prefix=1).join(features, rest).shape
        torch.Size([2, 10, 8])
    """

    kind: Literal["plain", "nhwc", "patches", "cls"] = "plain"
    prefix: int = 0

    @property
    def channels_last(self) -> bool:
        """Whether the channels are the last dimension of the module's output, also if it is a map."""
        return self.kind != "plain"

    @property
    def has_rest(self) -> bool:
        """Whether the output holds tokens that are not among the features."""
        return self.kind == "cls" or self.prefix > 0

    @property
    def rule(self) -> str:
        """What a tap's path ends in to ask for this layout; empty if the output is the features."""
        names = {"plain": "", "nhwc": ":nhwc", "patches": f":prefix={self.prefix}", "cls": ":cls"}
        return names[self.kind]

    def split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split a module's output into features and other tokens.

        Args:
            output: Output of the module: ``[B, C, *space]``, ``[B, height, width, C]`` or ``[B, N, C]``.

        Returns:
            The features, ``[B, C, *space]``, and the tokens that are not part of them, ``[B, N', C]``; None
            if there are none. Both may share the memory of the output.
        """
        if self.kind == "plain":
            return output, None
        if self.kind == "nhwc":
            return output.movedim(-1, 1), None
        if self.kind == "cls":
            return output[:, 0], output[:, 1:]
        patches = output[:, self.prefix :].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        return patches.unflatten(2, (side, side)), output[:, : self.prefix] if self.prefix else None

    def join(self, features: Tensor, rest: Tensor | None) -> Tensor:
        """Build a module's output from features and other tokens: the inverse of :meth:`split`.

        Tokens are contiguous in memory, because networks use ``view`` on them.

        Args:
            features: Features, ``[B, C, *space]``.
            rest: The other tokens, ``[B, N', C]``; None if :attr:`has_rest` is false.
        """
        if self.kind == "plain":
            return features
        if self.kind == "nhwc":
            return features.movedim(1, -1).contiguous()
        if self.kind == "cls":
            assert rest is not None
            return torch.cat([features[:, None], rest], dim=1)
        patches = features.flatten(2).transpose(1, 2)
        return patches.contiguous() if rest is None else torch.cat([rest, patches], dim=1)


def parse_tap_path(tap: str, path: str) -> tuple[str, Layout | None]:
    """Split the path of a tap, such as ``blocks.5:cls``, into module path and layout.

    Args:
        tap: Name of the tap, for the error message.
        path: Module path, alone or followed by one of :data:`RULES`.

    Returns:
        Module path and layout; None if the path says nothing about it.

    Raises:
        InputError: What follows the module path is not a rule.

    Example:
        >>> parse_tap_path("late", "blocks.5:prefix=2")
        ('blocks.5', Layout(kind='patches', prefix=2))
    """
    module_path, colon, rule = path.partition(":")
    if not colon:
        return path, None
    if number := re.fullmatch(r"prefix=(\d+)", rule):
        return module_path, Layout("patches", int(number[1]))
    layouts = {"cls": Layout("cls"), "nhwc": Layout("nhwc"), "nchw": Layout()}
    if rule not in layouts:
        raise InputError(f"taps.{tap}: {path!r} ends in ':{rule}'; after a module path may follow {RULES}")
    return module_path, layouts[rule]
