"""The encoder of one tap: a chain of auto-encoders (Shen et al., AAAI 2019).

Shapes: B images, N teachers, S stacked channels, C code channels, *space height and width, n positions.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.autoencoder import Affine, AutoEncoder, affine
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments


def all_at_once(channels: Sequence[int]) -> tuple[int, ...]:
    """Let one auto-encoder join all teachers.

    Example:
        >>> all_at_once([8, 8, 16])
        (32,)
    """
    return (sum(channels),)


def one_by_one(channels: Sequence[int]) -> tuple[int, ...]:
    """Let a first auto-encoder join two teachers and each further one one teacher more.

    Example:
        >>> one_by_one([8, 8, 16])
        (16, 16)
    """
    return (sum(channels[:2]), *channels[2:])


class Amalgamation(nn.Module):
    """A chain of auto-encoders, each joining the code so far with the features of more teachers.

    Link 0 encodes the first span of the stacked channels. Link k encodes the code of link k - 1 beside
    span k, and rebuilds both. The code of the last link is that of the tap.

    Args:
        spans: How many stacked channels each link adds; S is their sum.
        code_channels: C.

    Raises:
        InputError: The code is wider than what the first link joins.
    """

    scale: Tensor

    def __init__(self, spans: Sequence[int], code_channels: int) -> None:
        super().__init__()
        if code_channels > spans[0]:
            raise InputError(
                f"a code of {code_channels} channels is wider than the {spans[0]} that its first "
                "auto-encoder joins; lower codes.widths"
            )
        self.spans, self.code_channels = tuple(spans), code_channels
        self.register_buffer("scale", torch.ones(()))
        before = [0, *[code_channels] * (len(spans) - 1)]
        self.links = nn.ModuleList(
            AutoEncoder(code + span, code_channels) for code, span in zip(before, spans, strict=True)
        )

    def encode(self, stacked: Tensor) -> Tensor:
        """Map `[B, S, *space]` to the code `[B, C, *space]`."""
        return self._code(stacked, len(self.spans) - 1) / self.scale

    def forward(self, stacked: Tensor) -> Tensor:
        """Rebuild `[B, S, *space]` from its code: each link gives its span and the code before it."""
        code, spans = self._code(stacked, len(self.spans) - 1), []
        for link in reversed(range(1, len(self.spans))):
            rebuilt = self._link(link).decode(code)
            code, span = rebuilt.split([self.code_channels, self.spans[link]], dim=1)
            spans.append(span)
        spans.append(self._link(0).decode(code))
        return torch.cat(spans[::-1], dim=1)

    @torch.no_grad()
    def link_input(self, stacked: Tensor, link: int) -> Tensor:
        """Give what a link is trained on, `[n, C + span]`: the code of the links before, beside its span.

        Args:
            stacked: `[n, S]`.
            link: Its number; link 0 gets its span alone.
        """
        return self._input(stacked, link)

    def channels(self, link: int) -> list[int]:
        """Say which stacked channels a link's input is made of, where the codes before are channels, too."""
        start = sum(self.spans[:link])
        span = list(range(start, start + self.spans[link]))
        if link == 0:
            return span
        before, chosen = self.channels(link - 1), self._link(link - 1).encoder.weight.argmax(dim=1)
        return [before[place] for place in chosen.tolist()] + span

    def link_moments(self, moments: Moments, link: int) -> Moments:
        """Give the moments of :meth:`link_input` in closed form, from those of the stacked features."""
        if link == 0:
            return moments.slice_channels(0, self.spans[0])
        return moments.apply_affine(*self._input_map(link))

    def to_autoencoder(self) -> AutoEncoder:
        """Give the whole chain as one auto-encoder, composed in float64: it is affine, like its links."""
        (encode, encode_bias), spans = self._code_map(len(self.spans) - 1), []
        scale = self.scale.to(encode)
        code_map = encode / scale, encode_bias / scale
        identity = torch.eye(self.code_channels, dtype=torch.float64, device=code_map[0].device)
        weight, bias = scale * identity, identity.new_zeros(self.code_channels)
        for link in reversed(range(len(self.spans))):
            decode, decode_bias = affine(self._link(link).decoder)
            weight, bias = decode @ weight, decode @ bias + decode_bias
            code = self.code_channels if link else 0
            spans.append((weight[code:], bias[code:]))
            weight, bias = weight[:code], bias[:code]
        weights, biases = zip(*spans[::-1], strict=True)
        return AutoEncoder.of(code_map, (torch.cat(weights), torch.cat(biases)))

    def relative_error(self, moments: Moments) -> float:
        """Compute ``E||rebuilt - stacked||^2 / E||stacked - mean||^2`` in closed form."""
        return self.to_autoencoder().relative_error(moments)

    @torch.no_grad()
    def standardise(self, moments: Moments) -> None:
        """Scale the code by one number so that its mean variance over the channels is 1.

        Layers are then learned at the same rate whatever the units of the features. The links keep theirs,
        since later links are trained on them.
        """
        variance = moments.apply_affine(*self._code_map(len(self.spans) - 1)).covariance.diagonal().mean()
        self.scale.copy_(variance.sqrt().clamp_min(1e-12))

    def _link(self, link: int) -> AutoEncoder:
        return cast(AutoEncoder, self.links[link])

    def _input(self, stacked: Tensor, link: int) -> Tensor:
        span = stacked.split(self.spans, dim=1)[link]
        return torch.cat([self._code(stacked, link - 1), span], dim=1) if link else span

    def _code(self, stacked: Tensor, link: int) -> Tensor:
        return self._link(link).encode(self._input(stacked, link))

    def _input_map(self, link: int) -> Affine:
        """From the stacked features to a link's input, `[C + span, S]`."""
        weight = self._link(0).encoder.weight
        identity = torch.eye(sum(self.spans), dtype=torch.float64, device=weight.device)
        span = identity.split(self.spans)[link]
        bias = span.new_zeros(len(span))
        if link == 0:
            return span, bias
        code, code_bias = self._code_map(link - 1)
        return torch.cat([code, span]), torch.cat([code_bias, bias])

    def _code_map(self, link: int) -> Affine:
        """From the stacked features to a link's code, `[C, S]`."""
        weight, bias = self._input_map(link)
        encode, encode_bias = affine(self._link(link).encoder)
        return encode @ weight, encode @ bias + encode_bias
