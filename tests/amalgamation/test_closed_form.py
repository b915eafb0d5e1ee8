"""Computed auto-encoders against numpy, against brute force and against what they must never do."""

import itertools

import numpy as np
import pytest
import torch

from ka_ray.amalgamation.closed_form import fit_channel_autoencoder, fit_pca_autoencoder
from ka_ray.errors import InputError
from ka_ray.numerics.channel_selection import LayerInputStats, choose_channels, order_channels
from ka_ray.numerics.moments import Moments


def features_of(count: int = 400, channels: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -1.5, channels, dtype=torch.float64)
    return (torch.randn(count, channels, generator=generator, dtype=torch.float64) * scale) @ mixing + 3


def lost_by_regression(features: np.ndarray, chosen: tuple[int, ...]) -> float:
    """What an affine map from some channels misses of all of them, as a share of their variance."""
    design = np.column_stack([features[:, list(chosen)], np.ones(len(features))])
    rebuilt = design @ np.linalg.lstsq(design, features, rcond=None)[0]
    return float(((features - rebuilt) ** 2).sum() / ((features - features.mean(0)) ** 2).sum())


def test_the_spectrum_is_numpys():
    features = features_of()
    eigenvalues = np.linalg.svd(features.numpy() - features.numpy().mean(0), compute_uv=False) ** 2
    expected = [eigenvalues[width:].sum() / eigenvalues.sum() for width in range(7)]
    spectrum = Moments.of(features).spectrum()
    np.testing.assert_allclose(spectrum, expected, atol=1e-12)
    assert Moments.of(features).optimal_relative_error(2) == spectrum[2].item()


@pytest.mark.parametrize("width", range(1, 7))
def test_the_principal_code_loses_what_the_spectrum_says(width):
    features = features_of()
    moments = Moments.of(features)
    code = fit_pca_autoencoder(moments, width).double()
    error = (code(features) - features).square().sum() / (features - features.mean(0)).square().sum()
    assert error.item() == pytest.approx(moments.spectrum()[width].item(), abs=1e-7)
    assert code.relative_error(moments) == pytest.approx(error.item(), abs=1e-7)


def test_the_principal_code_spans_numpys_subspace():
    features = features_of()
    _, directions = np.linalg.eigh(np.cov(features.numpy().T))
    expected = directions[:, -3:] @ directions[:, -3:].T
    decode = fit_pca_autoencoder(Moments.of(features), 3).decoder.weight.detach().double().numpy()
    np.testing.assert_allclose(decode @ decode.T, expected, atol=1e-6)  # weights are float32
    np.testing.assert_allclose(decode.T @ decode, np.eye(3), atol=1e-6)


def test_features_that_never_vary_have_no_spectrum():
    with pytest.raises(InputError, match="never vary"):
        Moments.of(torch.ones(5, 3)).spectrum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_chosen_channel_is_the_best_next_one_by_brute_force(count, seed):
    features = features_of(seed=seed)
    expected: tuple[int, ...] = ()
    for _ in range(count):
        others = [channel for channel in range(6) if channel not in expected]
        best = min(others, key=lambda channel: lost_by_regression(features.numpy(), (*expected, channel)))
        expected = (*expected, best)
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), count) == tuple(sorted(expected))


@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_channels_are_ordered_by_what_they_tell_the_targets(values, seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(300, 5 * values)) @ rng.normal(size=(5 * values, 5 * values)) + 2
    targets = inputs @ rng.normal(size=(5 * values, 4)) + rng.normal(size=(300, 4))
    joint = Moments.of(torch.from_numpy(np.column_stack([inputs, targets]))).covariance
    size = 5 * values
    expected = list[int]()
    for _ in range(5):

        def missed(channel: int) -> float:
            kept = [c * values + v for c in (*expected, channel) for v in range(values)]
            design = np.column_stack([inputs[:, kept], np.ones(300)])
            return float(((targets - design @ np.linalg.lstsq(design, targets, rcond=None)[0]) ** 2).sum())

        expected.append(min((c for c in range(5) if c not in expected), key=missed))
    seen = LayerInputStats(joint[:size, :size], joint[:size, size:], values)
    assert order_channels(seen, 5) == tuple(expected)
    assert order_channels(seen, 2) == tuple(expected[:2])
    some = [4, 1, 2]
    columns = [channel * values + value for channel in some for value in range(values)]
    alone = LayerInputStats(seen.covariance[columns][:, columns], seen.targets[columns], values)
    assert order_channels(seen.select_channels(some), 3) == order_channels(alone, 3)


def test_a_loud_channel_that_no_other_shares_is_chosen_after_one_that_tells_three():
    shared = torch.randn(500, 1, dtype=torch.float64)
    alone = 1.3 * torch.randn(500, 1, dtype=torch.float64)
    features = torch.cat([shared, shared, shared, alone], dim=1)
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), 1) in [(0,), (1,), (2,)]
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), 2)[1] == 3


def test_of_channels_that_tell_nothing_the_first_are_chosen():
    features = torch.randn(50, 5, dtype=torch.float64)
    features[:, [1, 3]] = 2.0
    features[:, 4] = features[:, 0]
    assert choose_channels(LayerInputStats(Moments.of(features).covariance), 3) in [(0, 1, 2), (1, 2, 4)]
    assert choose_channels(LayerInputStats(torch.zeros(4, 4)), 2) == (0, 1)


def test_all_subsets_lose_at_least_what_the_principal_code_does():
    features = features_of()
    moments = Moments.of(features)
    for chosen in itertools.combinations(range(6), 3):
        code = fit_channel_autoencoder(moments, chosen)
        assert code.relative_error(moments) >= moments.spectrum()[3].item() - 1e-7
        expected = lost_by_regression(features.numpy(), chosen)
        assert code.relative_error(moments) == pytest.approx(expected, abs=1e-6)


def test_a_code_of_channels_is_these_channels():
    maps = torch.randn(4, 5, 3, 2)
    code = fit_channel_autoencoder(Moments.of(maps), (0, 3)).encode(maps)
    assert torch.equal(code, maps[:, [0, 3]])
