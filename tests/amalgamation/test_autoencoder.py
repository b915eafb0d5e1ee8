"""Closed-form errors of auto-encoders equal sums over the data, and whitening does not change the result."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation import AutoEncoder, IsometricAutoEncoder, WhitenedAutoEncoder
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments


def make_decaying_features(count: int = 400, channels: int = 12, decades: float = 4) -> Tensor:
    """Make features with mean 2 whose variances along a random basis fall by ``decades`` powers of ten."""
    basis = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
    deviations = 10 ** (-decades / 2 * torch.linspace(0, 1, channels, dtype=torch.float64))
    return (torch.randn(count, channels, dtype=torch.float64) * deviations) @ basis.T + 2


def pca_by_numpy(features: Tensor, code_channels: int) -> AutoEncoder:
    """Build the auto-encoder of the principal subspace with numpy."""
    values = features.numpy()
    mean = values.mean(0)
    basis = np.linalg.eigh(np.cov(values.T, bias=True))[1][:, ::-1][:, :code_channels].copy()
    autoencoder = AutoEncoder(values.shape[1], code_channels).double()
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(torch.from_numpy(basis.T))
        autoencoder.encoder.bias.copy_(torch.from_numpy(-mean @ basis))
        autoencoder.decoder.weight.copy_(torch.from_numpy(basis))
        autoencoder.decoder.bias.copy_(torch.from_numpy(mean))
    return autoencoder


def relative_error_over_data(autoencoder: AutoEncoder, features: Tensor) -> float:
    """Compute ``||rebuilt - stacked||^2 / ||stacked - mean||^2`` by sums over the data."""
    with torch.no_grad():
        rebuilt = autoencoder.double()(features.double())
    dims = [0, *range(2, features.dim())]
    centred = features.double() - features.double().mean(dim=dims, keepdim=True)
    return float((rebuilt - features.double()).square().sum() / centred.square().sum())


def perturb(module: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter, also the biases, away from its initial value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def test_encoder_and_decoder_are_1x1_convs():
    autoencoder = AutoEncoder(6, 4)
    stacked = torch.randn(3, 6, 5, 2)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    code = functional.conv2d(stacked, encoder.weight[:, :, None, None], encoder.bias)
    rebuilt = functional.conv2d(code, decoder.weight[:, :, None, None], decoder.bias)
    torch.testing.assert_close(autoencoder.encode(stacked), code)
    torch.testing.assert_close(autoencoder(stacked), rebuilt)


@pytest.mark.parametrize("shape", [(200, 12), (30, 12, 4, 3)])
@pytest.mark.parametrize("code_channels", [1, 5, 12])
def test_the_closed_form_error_equals_the_error_over_the_data(shape, code_channels):
    features = torch.randn(shape, dtype=torch.float64) * torch.rand(12, *[1] * (len(shape) - 2)) + 1
    autoencoder = AutoEncoder(12, code_channels)
    expected = relative_error_over_data(autoencoder, features)
    assert autoencoder.relative_error(Moments.of(features)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("code_channels", [1, 4, 11])
def test_the_principal_subspace_has_the_optimal_error(code_channels):
    features = make_decaying_features()
    moments = Moments.of(features)
    error = pca_by_numpy(features, code_channels).relative_error(moments)
    assert error == pytest.approx(moments.optimal_relative_error(code_channels), rel=1e-8)


@pytest.mark.parametrize("code_channels", [1, 4, 11])
def test_no_auto_encoder_has_less_than_the_optimal_error(code_channels):
    features = make_decaying_features()
    moments = Moments.of(features)
    best = pca_by_numpy(features, code_channels)
    least = moments.optimal_relative_error(code_channels)
    for size in (1e-3, 1e-2, 0.1):
        other = AutoEncoder(12, code_channels).double()
        with torch.no_grad():
            for parameter, optimum in zip(other.parameters(), best.parameters(), strict=True):
                parameter.copy_(optimum + size * torch.randn_like(optimum))
        assert other.relative_error(moments) > least


def test_the_whitened_loss_is_the_loss_of_the_raw_features_divided_by_their_variance():
    features = make_decaying_features()
    learner = perturb(WhitenedAutoEncoder(Moments.of(features), 4))
    rebuilt = learner.to_autoencoder().double()(features)
    variance = np.trace(np.cov(features.numpy().T, bias=True)) / 12
    expected = 0.5 * (rebuilt - features).square().mean() / variance
    assert learner(features.float()).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("code_channels", [1, 4, 12])
def test_merging_the_whitening_keeps_the_rebuilt_features(code_channels):
    features = make_decaying_features()
    learner = perturb(WhitenedAutoEncoder(Moments.of(features), code_channels)).double()
    whitened = (features - learner.mean) @ learner.whitening
    rebuilt = learner.mean + learner.scale * learner.decoder(learner.encoder(whitened))
    autoencoder = learner.to_autoencoder()
    assert isinstance(autoencoder, AutoEncoder)
    torch.testing.assert_close(autoencoder(features.float()), rebuilt.float(), rtol=1e-4, atol=1e-4)


def test_whitened_features_have_unit_variance_above_the_floor():
    features = make_decaying_features(decades=2)
    learner = WhitenedAutoEncoder(Moments.of(features), 4)
    whitened = (features.float() - learner.mean) @ learner.whitening
    np.testing.assert_allclose(np.cov(whitened.double().T, bias=True), np.eye(12), atol=5e-3)


def test_directions_without_variance_are_not_amplified():
    features = make_decaying_features()
    features[:, 7:] = 1.5
    learner = WhitenedAutoEncoder(Moments.of(features), 3)
    whitened = (features.float() - learner.mean) @ learner.whitening
    assert whitened.isfinite().all()
    assert whitened.var(dim=0).max() < 1.1
    assert torch.isfinite(learner(features.float()))


@pytest.mark.parametrize(
    "call",
    [
        lambda moments: WhitenedAutoEncoder(moments, 2),
        lambda moments: moments.optimal_relative_error(2),
    ],
    ids=["training", "optimum"],
)
def test_features_without_variance_are_refused(call):
    moments = Moments.of(torch.full((20, 4), 3.0))
    with pytest.raises(InputError, match="never vary"):
        call(moments)


def test_the_optimal_code_of_full_width_has_no_error():
    features = make_decaying_features(decades=1)
    moments = Moments.of(features)
    assert moments.optimal_relative_error(12) == 0
    assert pca_by_numpy(features, 12).relative_error(moments) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("code_channels", [1, 4, 12])
def test_isometric_decoders_are_orthonormal_and_rebuild_the_same(code_channels):
    features = make_decaying_features()
    moments = Moments.of(features)
    learner = perturb(IsometricAutoEncoder(moments, code_channels))
    isometric, whitened = learner.to_autoencoder(), WhitenedAutoEncoder.to_autoencoder(learner)
    torch.testing.assert_close(isometric(features.float()), whitened(features.float()), rtol=1e-4, atol=1e-4)
    columns = isometric.decoder.weight
    torch.testing.assert_close(columns.T @ columns, torch.eye(code_channels), rtol=1e-5, atol=1e-5)


def test_an_auto_encoder_is_built_from_given_weights():
    weights = torch.randn(3, 5), torch.randn(3), torch.randn(5, 3), torch.randn(5)
    autoencoder = AutoEncoder.from_weights(weights[:2], weights[2:])
    for parameter, given in zip(autoencoder.parameters(), weights, strict=True):
        assert torch.equal(parameter, given)
        assert parameter.requires_grad
