"""One linear auto-encoder, and the learners that train it (Shen et al., AAAI 2019).

Shapes: B images, S stacked channels, C code channels, *space height and width, n positions.
"""

import torch
from torch import Tensor, nn

from ka_ray.numerics.channelwise import apply_channelwise
from ka_ray.numerics.moments import Moments

WHITENING_FLOOR = 1e-5
"""Directions with less than this share of the largest variance are not amplified to unit variance."""


AffineMap = tuple[Tensor, Tensor]
"""Weight and bias of ``x -> weight x + bias``."""


def get_affine_map(linear: nn.Linear) -> AffineMap:
    """Return weight and bias of a linear layer in float64, detached from the graph."""
    return linear.weight.detach().to(torch.float64), linear.bias.detach().to(torch.float64)


class AutoEncoder(nn.Module):
    """A linear encoder (1x1 conv, S -> C) and a linear decoder (1x1 conv, C -> S), both with bias.

    On `[B, S]` features both are plain linear layers.

    Args:
        stacked_channels: Number of stacked channels, S.
        code_channels: Number of code channels, C, at most S.
    """

    def __init__(self, stacked_channels: int, code_channels: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(stacked_channels, code_channels)
        self.decoder = nn.Linear(code_channels, stacked_channels)

    @staticmethod
    @torch.no_grad()
    def from_weights(encode: AffineMap, decode: AffineMap) -> "AutoEncoder":
        """Build an auto-encoder from its weights.

        Args:
            encode: Weight `[C, S]` and bias `[C]` of the encoder.
            decode: Weight `[S, C]` and bias `[S]` of the decoder.
        """
        code_channels, stacked_channels = encode[0].shape
        autoencoder = AutoEncoder(stacked_channels, code_channels)
        for layer, (weight, bias) in ((autoencoder.encoder, encode), (autoencoder.decoder, decode)):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return autoencoder

    def encode(self, stacked: Tensor) -> Tensor:
        """Map stacked features `[B, S, *space]` to their code `[B, C, *space]`."""
        return apply_channelwise(self.encoder, stacked)

    def decode(self, code: Tensor) -> Tensor:
        """Rebuild the stacked features `[B, S, *space]` from their code `[B, C, *space]`."""
        return apply_channelwise(self.decoder, code)

    def forward(self, stacked: Tensor) -> Tensor:
        """Encode and decode stacked features `[B, S, *space]`."""
        return self.decode(self.encode(stacked))

    @torch.no_grad()
    def relative_error(self, moments: Moments) -> float:
        """Compute ``E||rebuilt - stacked||^2 / E||stacked - mean||^2`` from the moments of the features.

        The result is exact over all images that the moments were measured on: the auto-encoder is affine, so
        ``rebuilt - stacked = M x + v``, and its expected squared norm depends only on mean and covariance of
        x.
        """
        encode, encode_bias = get_affine_map(self.encoder)
        decode, decode_bias = get_affine_map(self.decoder)
        residual = decode @ encode - torch.eye(len(decode), dtype=torch.float64, device=decode.device)
        error = moments.expected_squared_norm(residual, decode @ encode_bias + decode_bias)
        return float(error / moments.covariance.trace())


class LinkLearner(nn.Module):
    """Base class of modules that train one auto-encoder: one link of a tap's chain."""

    def forward(self, positions: Tensor) -> Tensor:
        """Return the loss, a scalar, for `[n, S]` features."""
        raise NotImplementedError

    def to_autoencoder(self) -> AutoEncoder:
        """Return the learned auto-encoder, which works on raw features."""
        raise NotImplementedError


class WhitenedAutoEncoder(LinkLearner):
    """An auto-encoder in training, whose encoder sees whitened features.

    The variances of a trained network's features differ by many orders of magnitude, and Adam on raw features
    is far from the optimum after several epochs. Whitened features ``z = W (x - mean)`` with
    ``W = covariance^(-1/2)`` have unit variance in every direction. The loss is still that of the raw
    features, only divided by their mean variance, so the optimum is unchanged, and :meth:`to_autoencoder` can
    merge the whitening into the weights of the encoder.

    Args:
        moments: Moments of the stacked features, S channels.
        code_channels: Number of code channels, C.

    Attributes:
        mean: `[S]`, mean of the stacked features.
        scale: Scalar, root of the mean variance of the stacked features.
        whitening: `[S, S]`, W.

    Raises:
        InputError: The features never vary.
    """

    mean: Tensor
    scale: Tensor
    whitening: Tensor

    def __init__(self, moments: Moments, code_channels: int) -> None:
        super().__init__()
        moments.check_variance()
        variances, directions = torch.linalg.eigh(moments.covariance)
        # Without a floor, directions that hold only rounding errors would get unit variance as well.
        floor = WHITENING_FLOOR * variances[-1]
        inverse_root = (variances.clamp_min(0) + floor).rsqrt()
        whitening = (directions * inverse_root) @ directions.T
        scale = (variances.clamp_min(0).mean() + floor).sqrt()
        # Buffers, so that they move to the device and into checkpoints with the module.
        self.register_buffer("mean", moments.mean.float())
        self.register_buffer("scale", scale.float())
        self.register_buffer("whitening", whitening.float())
        self.encoder = nn.Linear(len(moments.mean), code_channels)
        self.decoder = nn.Linear(code_channels, len(moments.mean))
        # The decoder starts as the transpose of the encoder, so training starts from a projection.
        nn.init.orthogonal_(self.encoder.weight)
        nn.init.zeros_(self.encoder.bias)
        nn.init.zeros_(self.decoder.bias)
        with torch.no_grad():
            self.decoder.weight.copy_(self.encoder.weight.T)

    def forward(self, positions: Tensor) -> Tensor:
        """Return ``1/2 (rebuilt - stacked)^2 / scale^2``, averaged over the values of `[n, S]` features."""
        return self.loss(positions, self.encode(positions))

    def encode(self, positions: Tensor) -> Tensor:
        """Map `[n, S]` features to their code `[n, C]`."""
        code: Tensor = self.encoder((positions - self.mean) @ self.whitening)
        return code

    def loss(self, positions: Tensor, code: Tensor) -> Tensor:
        """Return the loss of features that are rebuilt from the given code.

        Args:
            positions: `[n, S]` features.
            code: `[n, C]`, not necessarily that of :meth:`encode`.
        """
        rebuilt: Tensor = self.decoder(code)
        return 0.5 * (rebuilt - (positions - self.mean) / self.scale).square().mean()

    @torch.no_grad()
    def raw_encoder(self) -> AffineMap:
        """Return weight `[C, S]` and bias `[C]` of the encoder for raw features, in float64."""
        weight = self.encoder.weight.to(torch.float64) @ self.whitening.to(torch.float64)
        return weight, self.encoder.bias.to(torch.float64) - weight @ self.mean.to(torch.float64)

    @torch.no_grad()
    def to_autoencoder(self) -> AutoEncoder:
        """Return the same auto-encoder for raw features, with whitening and scale merged into its weights."""
        scale = self.scale.to(torch.float64)
        decode = scale * self.decoder.weight.to(torch.float64)
        decode_bias = scale * self.decoder.bias.to(torch.float64) + self.mean.to(torch.float64)
        return AutoEncoder.from_weights(self.raw_encoder(), (decode, decode_bias))


class IsometricAutoEncoder(WhitenedAutoEncoder):
    """A whitened auto-encoder whose final code has the units of the features.

    The code of :class:`WhitenedAutoEncoder` has about unit variance in every direction, however much of the
    features' variance a direction stands for. The next link of a chain, which encodes this code beside the
    features of another teacher, would then weigh the two wrongly. With orthonormal decoder columns, an error
    in the code costs as much as the error in the rebuilt features that it causes. The rebuilt features are
    the same.
    """

    @torch.no_grad()
    def to_autoencoder(self) -> AutoEncoder:
        """Return the auto-encoder for raw features, with orthonormal decoder columns."""
        autoencoder = super().to_autoencoder()
        encode, decode = get_affine_map(autoencoder.encoder), get_affine_map(autoencoder.decoder)
        # decode = Q R: the code is multiplied by R, so the decoder needs only Q.
        columns, mixing = torch.linalg.qr(decode[0])
        return AutoEncoder.from_weights((mixing @ encode[0], mixing @ encode[1]), (columns, decode[1]))
