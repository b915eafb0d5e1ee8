"""Direct feature amalgamation: one linear auto-encoder a tap over all teachers (Shen et al., AAAI 2019).

Shapes: B images, S stacked channels, C code channels, *space height and width, n positions.
"""

import torch
from torch import Tensor, nn

from ka_ray.amalgamation.moments import Moments
from ka_ray.features.channelwise import apply_channelwise

WHITENING_FLOOR = 1e-5
"""Directions with less than this share of the largest variance are not amplified to unit variance."""


class AutoEncoder(nn.Module):
    """A 1x1 conv S -> C and a 1x1 conv C -> S, both linear with bias; on `[B, S]` features, linear layers.

    Args:
        stacked_channels: S.
        code_channels: C, at most S.
    """

    def __init__(self, stacked_channels: int, code_channels: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(stacked_channels, code_channels)
        self.decoder = nn.Linear(code_channels, stacked_channels)

    def encode(self, stacked: Tensor) -> Tensor:
        """Map `[B, S, *space]` to the code `[B, C, *space]`."""
        return apply_channelwise(self.encoder, stacked)

    def forward(self, stacked: Tensor) -> Tensor:
        """Rebuild `[B, S, *space]` from its code."""
        return apply_channelwise(self.decoder, self.encode(stacked))

    @torch.no_grad()
    def relative_error(self, moments: Moments) -> float:
        """Compute ``E||rebuilt - stacked||^2 / E||stacked - mean||^2`` in closed form.

        The auto-encoder is affine, ``rebuilt - stacked = M x + v``, so the expectation needs nothing but the
        mean and covariance of x, and is exact over every image behind them.
        """
        weights = (self.decoder.weight, self.encoder.weight, self.encoder.bias, self.decoder.bias)
        decode, encode, encode_bias, decode_bias = (weight.to(torch.float64) for weight in weights)
        residual = decode @ encode - torch.eye(len(decode), dtype=torch.float64, device=decode.device)
        bias = residual @ moments.mean + decode @ encode_bias + decode_bias
        error = (residual @ moments.covariance * residual).sum() + bias.square().sum()
        return float(error / moments.covariance.trace())


class WhitenedAutoEncoder(nn.Module):
    """An auto-encoder while it is trained: its encoder works on whitened features.

    The features of a trained network have variances that differ by many orders of magnitude, and plain
    Adam on raw features is far from the optimum after several epochs. ``z = W (x - mean)`` with
    ``W = covariance^(-1/2)`` has unit variance in all directions; the loss stays that of the raw features
    (in units of their scale), so the optimum stays where it is: encoder and decoder of :meth:`collapse`
    are again one 1x1 conv each.

    Args:
        moments: Of the stacked features.
        code_channels: C.
    """

    mean: Tensor
    scale: Tensor
    whitening: Tensor

    def __init__(self, moments: Moments, code_channels: int) -> None:
        super().__init__()
        moments.check_variance()
        variances, directions = torch.linalg.eigh(moments.covariance)
        floor = WHITENING_FLOOR * variances[-1]
        root = (variances.clamp_min(0) + floor).rsqrt()
        whitening = (directions * root) @ directions.T
        scale = (variances.clamp_min(0).mean() + floor).sqrt()
        self.register_buffer("mean", moments.mean.float())
        self.register_buffer("scale", scale.float())
        self.register_buffer("whitening", whitening.float())
        self.encoder = nn.Linear(len(moments.mean), code_channels)
        self.decoder = nn.Linear(code_channels, len(moments.mean))
        nn.init.orthogonal_(self.encoder.weight)
        nn.init.zeros_(self.encoder.bias)
        nn.init.zeros_(self.decoder.bias)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.T)

    def forward(self, positions: Tensor) -> Tensor:
        """Give ``1/2 ||rebuilt - stacked||^2`` a value of `[n, S]` features, in units of their variance."""
        centred = positions - self.mean
        rebuilt: Tensor = self.decoder(self.encoder(centred @ self.whitening))
        return 0.5 * (rebuilt - centred / self.scale).square().mean()

    @torch.no_grad()
    def collapse(self) -> AutoEncoder:
        """Give the same auto-encoder on raw features, whitening and scale worked into its weights."""
        collapsed = AutoEncoder(len(self.mean), self.encoder.out_features)
        parts = (self.encoder.weight, self.encoder.bias, self.decoder.weight, self.decoder.bias)
        encode, encode_bias, decode, decode_bias = (part.to(torch.float64) for part in parts)
        encode = encode @ self.whitening.to(torch.float64)
        mean, scale = self.mean.to(torch.float64), self.scale.to(torch.float64)
        collapsed.encoder.weight.copy_(encode)
        collapsed.encoder.bias.copy_(encode_bias - encode @ mean)
        collapsed.decoder.weight.copy_(scale * decode)
        collapsed.decoder.bias.copy_(scale * decode_bias + mean)
        return collapsed
