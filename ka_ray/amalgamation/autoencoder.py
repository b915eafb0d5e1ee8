"""One linear auto-encoder, and how it is trained (Shen et al., AAAI 2019).

Shapes: B images, S stacked channels, C code channels, *space height and width, n positions.
"""

import torch
from torch import Tensor, nn

from ka_ray.numerics.channelwise import apply_channelwise
from ka_ray.numerics.moments import Moments

WHITENING_FLOOR = 1e-5
"""Directions with less than this share of the largest variance are not amplified to unit variance."""


Affine = tuple[Tensor, Tensor]
"""Weight and bias of ``x -> weight x + bias``."""


def affine(linear: nn.Linear) -> Affine:
    """Give weight and bias of a linear layer in float64, without gradient."""
    return linear.weight.detach().to(torch.float64), linear.bias.detach().to(torch.float64)


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

    @staticmethod
    @torch.no_grad()
    def of(encode: Affine, decode: Affine) -> "AutoEncoder":
        """Make the auto-encoder of given weights: `[C, S]` and `[C]`, `[S, C]` and `[S]`."""
        code_channels, stacked_channels = encode[0].shape
        autoencoder = AutoEncoder(stacked_channels, code_channels)
        for layer, (weight, bias) in ((autoencoder.encoder, encode), (autoencoder.decoder, decode)):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return autoencoder

    def encode(self, stacked: Tensor) -> Tensor:
        """Map `[B, S, *space]` to the code `[B, C, *space]`."""
        return apply_channelwise(self.encoder, stacked)

    def decode(self, code: Tensor) -> Tensor:
        """Rebuild `[B, S, *space]` from the code."""
        return apply_channelwise(self.decoder, code)

    def forward(self, stacked: Tensor) -> Tensor:
        """Rebuild `[B, S, *space]` from its own code."""
        return self.decode(self.encode(stacked))

    @torch.no_grad()
    def relative_error(self, moments: Moments) -> float:
        """Compute ``E||rebuilt - stacked||^2 / E||stacked - mean||^2`` in closed form.

        The auto-encoder is affine, ``rebuilt - stacked = M x + v``, so the expectation needs nothing but the
        mean and covariance of x, and is exact over every image behind them.
        """
        (encode, encode_bias), (decode, decode_bias) = affine(self.encoder), affine(self.decoder)
        residual = decode @ encode - torch.eye(len(decode), dtype=torch.float64, device=decode.device)
        bias = residual @ moments.mean + decode @ encode_bias + decode_bias
        error = (residual @ moments.covariance * residual).sum() + bias.square().sum()
        return float(error / moments.covariance.trace())


class LinkLearner(nn.Module):
    """What trains one auto-encoder."""

    def forward(self, positions: Tensor) -> Tensor:
        """Give the loss, a scalar, of `[n, S]` features."""
        raise NotImplementedError

    def to_autoencoder(self) -> AutoEncoder:
        """Give what was learned as an auto-encoder on raw features."""
        raise NotImplementedError


class WhitenedAutoEncoder(LinkLearner):
    """An auto-encoder while it is trained: its encoder works on whitened features.

    The features of a trained network have variances that differ by many orders of magnitude, and plain
    Adam on raw features is far from the optimum after several epochs. ``z = W (x - mean)`` with
    ``W = covariance^(-1/2)`` has unit variance in all directions; the loss stays that of the raw features
    (in units of their scale), so the optimum stays where it is: encoder and decoder of :meth:`to_autoencoder`
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
        return self.loss(positions, self.encode(positions))

    def encode(self, positions: Tensor) -> Tensor:
        """Map `[n, S]` features to their code `[n, C]`."""
        code: Tensor = self.encoder((positions - self.mean) @ self.whitening)
        return code

    def loss(self, positions: Tensor, code: Tensor) -> Tensor:
        """Give the loss of features that are rebuilt from this code."""
        rebuilt: Tensor = self.decoder(code)
        return 0.5 * (rebuilt - (positions - self.mean) / self.scale).square().mean()

    @torch.no_grad()
    def raw_encoder(self) -> Affine:
        """Give weight `[C, S]` and bias `[C]` of the encoder on raw features, in float64."""
        weight = self.encoder.weight.to(torch.float64) @ self.whitening.to(torch.float64)
        return weight, self.encoder.bias.to(torch.float64) - weight @ self.mean.to(torch.float64)

    @torch.no_grad()
    def to_autoencoder(self) -> AutoEncoder:
        """Give the same auto-encoder on raw features, whitening and scale worked into its weights."""
        scale = self.scale.to(torch.float64)
        decode = scale * self.decoder.weight.to(torch.float64)
        decode_bias = scale * self.decoder.bias.to(torch.float64) + self.mean.to(torch.float64)
        return AutoEncoder.of(self.raw_encoder(), (decode, decode_bias))


class IsometricAutoEncoder(WhitenedAutoEncoder):
    """The same, with a code in the units of the features: a length in the code is one in what it rebuilds.

    The code of a whitened encoder has about unit variance in every direction, whatever share of the
    features each stands for, and an auto-encoder that joins this code with further features would weigh the
    two wrongly. With orthonormal decoder columns an error in the code costs what it costs in the features.
    What is rebuilt stays the same.
    """

    @torch.no_grad()
    def to_autoencoder(self) -> AutoEncoder:
        """Give the auto-encoder on raw features, its decoder's columns orthonormal."""
        collapsed = super().to_autoencoder()
        encode, decode = affine(collapsed.encoder), affine(collapsed.decoder)
        columns, mixing = torch.linalg.qr(decode[0])
        return AutoEncoder.of((mixing @ encode[0], mixing @ encode[1]), (columns, decode[1]))
