"""The encoder of one tap: a chain of auto-encoders (Shen et al., AAAI 2019).

Shapes: B images, S stacked channels, C code channels, *space height and width, n positions. The *span* of a
link is the stacked channels that it adds to the code so far.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.autoencoder import AffineMap, AutoEncoder, get_affine_map
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments


def direct_spans(channels: Sequence[int]) -> tuple[int, ...]:
    """Return the one span of direct amalgamation: a single auto-encoder joins all teachers.

    Example:
        >>> direct_spans([8, 8, 16])
        (32,)
    """
    return (sum(channels),)


def incremental_spans(channels: Sequence[int]) -> tuple[int, ...]:
    """Return the spans of incremental amalgamation: two teachers in the first link, one in each next one.

    Example:
        >>> incremental_spans([8, 8, 16])
        (16, 16)
    """
    return (sum(channels[:2]), *channels[2:])


class Amalgamation(nn.Module):
    """A chain of auto-encoders that turns a tap's stacked features into its code.

    Link 0 encodes the first span of the stacked channels. Link k encodes the code of link k - 1 together with
    span k, and rebuilds both. The code of the last link, divided by ``scale``, is the code of the tap.

    Args:
        spans: Number of stacked channels that each link adds; S is their sum.
        code_channels: C.

    Attributes:
        spans: As given.
        code_channels: C.
        scale: Scalar that makes the code's mean variance 1 after :meth:`standardise`, else 1.
        links: The auto-encoders, S or C + span -> C channels each.

    Raises:
        InputError: The code is wider than the first span.
    """

    scale: Tensor

    def __init__(self, spans: Sequence[int], code_channels: int) -> None:
        super().__init__()
        if code_channels > spans[0]:
            raise InputError(
                f"a code of {code_channels} channels is wider than the {spans[0]} channels that its first "
                "auto-encoder joins; lower codes.widths"
            )
        self.spans, self.code_channels = tuple(spans), code_channels
        self.register_buffer("scale", torch.ones(()))
        input_codes = [0, *[code_channels] * (len(spans) - 1)]  # width of the code that enters each link
        self.links = nn.ModuleList(
            AutoEncoder(code + span, code_channels) for code, span in zip(input_codes, spans, strict=True)
        )

    def encode(self, stacked: Tensor) -> Tensor:
        """Map stacked features `[B, S, *space]` to the code of the tap `[B, C, *space]`."""
        return self._code(stacked, len(self.spans) - 1) / self.scale

    def forward(self, stacked: Tensor) -> Tensor:
        """Rebuild stacked features `[B, S, *space]` from their own code.

        Each link, from the last to the first, rebuilds its span and the code of the link before it.
        """
        code, spans = self._code(stacked, len(self.spans) - 1), []
        for link in reversed(range(1, len(self.spans))):
            rebuilt = self._link(link).decode(code)
            code, span = rebuilt.split([self.code_channels, self.spans[link]], dim=1)
            spans.append(span)
        spans.append(self._link(0).decode(code))
        return torch.cat(spans[::-1], dim=1)

    @torch.no_grad()
    def link_input(self, stacked: Tensor, link: int) -> Tensor:
        """Compute what a link is trained on: the code of the link before it, and its span.

        Args:
            stacked: `[n, S]` stacked features.
            link: Number of the link; the input of link 0 is only its span.

        Returns:
            `[n, C + span]`.
        """
        return self._input(stacked, link)

    def input_channels(self, link: int) -> list[int]:
        """Return which stacked channels the input of a link consists of.

        Only for chains whose codes are a selection of the stacked channels, see
        :func:`ka_ray.amalgamation.closed_form.fit_channel_autoencoder`.
        """
        start = sum(self.spans[:link])
        span = list(range(start, start + self.spans[link]))
        if link == 0:
            return span
        # A row of such an encoder has a single 1, at the channel that it selects.
        previous, chosen = self.input_channels(link - 1), self._link(link - 1).encoder.weight.argmax(dim=1)
        return [previous[index] for index in chosen.tolist()] + span

    def link_moments(self, moments: Moments, link: int) -> Moments:
        """Compute the moments of :meth:`link_input` in closed form; no pass over the images is needed.

        Args:
            moments: Moments of the stacked features, S channels.
            link: Number of the link; the links before it must be trained.
        """
        if link == 0:  # its input is only its span: slicing is exact, a matrix product rounds
            return moments.slice_channels(0, self.spans[0])
        return moments.apply_affine(*self._input_map(link))

    def to_autoencoder(self) -> AutoEncoder:
        """Merge the chain into one auto-encoder, in float64. The chain is affine, because its links are."""
        (encode, encode_bias), spans = self._code_map(len(self.spans) - 1), []
        scale = self.scale.to(encode)
        code_map = encode / scale, encode_bias / scale
        # Decode link by link as in `forward`, with matrices in place of features.
        identity = torch.eye(self.code_channels, dtype=torch.float64, device=code_map[0].device)
        weight, bias = scale * identity, identity.new_zeros(self.code_channels)
        for link in reversed(range(len(self.spans))):
            decode, decode_bias = get_affine_map(self._link(link).decoder)
            weight, bias = decode @ weight, decode @ bias + decode_bias
            code = self.code_channels if link else 0
            spans.append((weight[code:], bias[code:]))
            weight, bias = weight[:code], bias[:code]
        weights, biases = zip(*spans[::-1], strict=True)
        return AutoEncoder.from_weights(code_map, (torch.cat(weights), torch.cat(biases)))

    def relative_error(self, moments: Moments) -> float:
        """Compute the relative error of the whole chain; see :meth:`AutoEncoder.relative_error`."""
        return self.to_autoencoder().relative_error(moments)

    @torch.no_grad()
    def standardise(self, moments: Moments) -> None:
        """Set ``scale`` so that the mean variance of the code's channels is 1 for features of these moments.

        The student's layers then learn at the same rate whatever the units of the features are. The links
        themselves are not scaled, because later links may already be trained on their codes.
        """
        variance = moments.apply_affine(*self._code_map(len(self.spans) - 1)).covariance.diagonal().mean()
        self.scale.copy_(variance.sqrt().clamp_min(1e-12))

    def _link(self, link: int) -> AutoEncoder:
        return cast(AutoEncoder, self.links[link])

    def _input(self, stacked: Tensor, link: int) -> Tensor:
        span = stacked.split(self.spans, dim=1)[link]
        return torch.cat([self._code(stacked, link - 1), span], dim=1) if link else span

    def _code(self, stacked: Tensor, link: int) -> Tensor:
        """Compute the code of a link, before the division by ``scale``."""
        return self._link(link).encode(self._input(stacked, link))

    def _input_map(self, link: int) -> AffineMap:
        """Compute the affine map from the stacked features to the input of a link, `[C + span, S]`."""
        weight = self._link(0).encoder.weight
        identity = torch.eye(sum(self.spans), dtype=torch.float64, device=weight.device)
        span = identity.split(self.spans)[link]
        bias = span.new_zeros(len(span))
        if link == 0:
            return span, bias
        code, code_bias = self._code_map(link - 1)
        return torch.cat([code, span]), torch.cat([code_bias, bias])

    def _code_map(self, link: int) -> AffineMap:
        """Compute the affine map from the stacked features to the code of a link, `[C, S]`."""
        weight, bias = self._input_map(link)
        encode, encode_bias = get_affine_map(self._link(link).encoder)
        return encode @ weight, encode @ bias + encode_bias
