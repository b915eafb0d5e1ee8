"""Closed-form auto-encoders and channel choices agree with numpy and with brute force."""

import itertools

import numpy as np
import pytest
import torch

from ka_ray.amalgamation.closed_form import fit_channel_autoencoder, fit_pca_autoencoder
from ka_ray.errors import InputError
from ka_ray.numerics.channel_selection import LayerInputStats, choose_channels, order_channels
from ka_ray.numerics.moments import Moments


def make_features(count: int = 400, channels: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -1.5, channels, dtype=torch.float64)
    return (torch.randn(count, channels, generator=generator, dtype=torch.float64) * scale) @ mixing + 3


def regression_error(features: np.ndarray, chosen: tuple[int, ...]) -> float:
    """Compute the share of the variance that an affine map of the chosen channels leaves unexplained."""
    design = np.column_stack([features[:, list(chosen)], np.ones(len(features))])
    rebuilt = design @ np.linalg.lstsq(design, features, rcond=None)[0]
    return float(((features - rebuilt) ** 2).sum() / ((features - features.mean(0)) ** 2).sum())


def test_the_spectrum_equals_that_computed_by_numpy():
    features = make_features()
    eigenvalues = np.linalg.svd(features.numpy() - features.numpy().mean(0), compute_uv=False) ** 2
    expected = [eigenvalues[width:].sum() / eigenvalues.sum() for width in range(7)]
    spectrum = Moments.of(features).spectrum()
    np.testing.assert_allclose(spectrum, expected, atol=1e-12)
    assert Moments.of(features).optimal_relative_error(2) == spectrum[2].item()


@pytest.mark.parametrize("width", range(1, 7))
def test_the_error_of_pca_equals_the_spectrum(width):
    features = make_features()
    moments = Moments.of(features)
    code = fit_pca_autoencoder(moments, width).double()
    error = (code(features) - features).square().sum() / (features - features.mean(0)).square().sum()
    assert error.item() == pytest.approx(moments.spectrum()[width].item(), abs=1e-7)
    assert code.relative_error(moments) == pytest.approx(error.item(), abs=1e-7)


def test_pca_spans_the_subspace_computed_by_numpy():
    features = make_features()
    _, directions = np.linalg.eigh(np.cov(features.numpy().T))
    expected = directions[:, -3:] @ directions[:, -3:].T
    decode = fit_pca_autoencoder(Moments.of(features), 3).decoder.weight.detach().double().numpy()
    np.testing.assert_allclose(decode @ decode.T, expected, atol=1e-6)  # weights are float32
    np.testing.assert_allclose(decode.T @ decode, np.eye(3), atol=1e-6)


def test_the_spectrum_of_features_that_never_vary_is_refused():
    with pytest.raises(InputError, match="never vary"):
        Moments.of(torch.ones(5, 3)).spectrum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_chosen_channel_is_the_best_next_one_by_brute_force(count, seed):
    features = make_features(seed=seed)
    expected: tuple[int, ...] = ()
    for _ in range(count):
        others = [channel for channel in range(6) if channel not in expected]
        best = min(others, key=lambda channel: regression_error(features.numpy(), (*expected, channel)))
        expected = (*expected, best)
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), count) == tuple(sorted(expected))


@pytest.mark.parametrize("values_per_channel", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_channels_are_ordered_by_how_well_they_predict_the_targets(values_per_channel, seed):
    rng = np.random.default_rng(seed)
    inputs = (
        rng.normal(size=(300, 5 * values_per_channel))
        @ rng.normal(size=(5 * values_per_channel, 5 * values_per_channel))
        + 2
    )
    targets = inputs @ rng.normal(size=(5 * values_per_channel, 4)) + rng.normal(size=(300, 4))
    joint = Moments.of(torch.from_numpy(np.column_stack([inputs, targets]))).covariance
    size = 5 * values_per_channel
    expected = list[int]()
    for _ in range(5):

        def regression_residual(channel: int) -> float:
            rows = [
                c * values_per_channel + v for c in (*expected, channel) for v in range(values_per_channel)
            ]
            design = np.column_stack([inputs[:, rows], np.ones(300)])
            return float(((targets - design @ np.linalg.lstsq(design, targets, rcond=None)[0]) ** 2).sum())

        expected.append(min((c for c in range(5) if c not in expected), key=regression_residual))
    stats = LayerInputStats(joint[:size, :size], joint[:size, size:], values_per_channel)
    assert order_channels(stats, 5) == tuple(expected)
    assert order_channels(stats, 2) == tuple(expected[:2])
    subset = [4, 1, 2]
    columns = [
        channel * values_per_channel + value for channel in subset for value in range(values_per_channel)
    ]
    expected_stats = LayerInputStats(
        stats.covariance[columns][:, columns], stats.targets[columns], values_per_channel
    )
    assert order_channels(stats.select_channels(subset), 3) == order_channels(expected_stats, 3)


def test_a_channel_that_predicts_two_others_is_chosen_before_a_larger_independent_one():
    shared = torch.randn(500, 1, dtype=torch.float64)
    independent = 1.3 * torch.randn(500, 1, dtype=torch.float64)
    features = torch.cat([shared, shared, shared, independent], dim=1)
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), 1) in [(0,), (1,), (2,)]
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), 2)[1] == 3


def test_among_channels_without_variance_the_first_are_chosen():
    features = torch.randn(50, 5, dtype=torch.float64)
    features[:, [1, 3]] = 2.0
    features[:, 4] = features[:, 0]
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), 3) in [(0, 1, 2), (1, 2, 4)]
    assert choose_channels(LayerInputStats(torch.zeros(4, 4)), 2) == (0, 1)


def test_no_choice_of_channels_has_less_error_than_pca():
    features = make_features()
    moments = Moments.of(features)
    for chosen in itertools.combinations(range(6), 3):
        code = fit_channel_autoencoder(moments, chosen)
        assert code.relative_error(moments) >= moments.spectrum()[3].item() - 1e-7
        expected = regression_error(features.numpy(), chosen)
        assert code.relative_error(moments) == pytest.approx(expected, abs=1e-6)


def test_a_channel_code_holds_the_chosen_channels():
    maps = torch.randn(4, 5, 3, 2)
    code = fit_channel_autoencoder(Moments.of(maps), (0, 3)).encode(maps)
    assert torch.equal(code, maps[:, [0, 3]])
