"""Test that all positions are sampled with the same probability, and that their features are returned."""

import pytest
import torch

from ka_ray.numerics.positions import sample_features, sample_positions


def test_positions_are_sampled_with_the_same_probability_and_without_repetition():
    draws = (torch.arange(3000) + 0.5) / 3000  # evenly spaced in [0, 1), instead of random numbers
    for available, requested in ((12, 5), (7, 7), (30, 4), (4, 9)):
        sampled = sample_positions(draws, available, requested)
        assert sampled.shape == (3000, min(available, requested))
        assert (sampled.diff(dim=1) > 0).all()
        frequencies = torch.bincount(sampled.flatten(), minlength=available) / 3000
        torch.testing.assert_close(
            frequencies, torch.full((available,), min(available, requested) / available), atol=2e-3, rtol=0
        )


@pytest.mark.parametrize("space", [(3, 4), (1, 1), (5, 2)])
def test_the_features_at_the_sampled_positions_are_returned(space):
    features, draws = torch.randn(6, 4, *space), torch.rand(6)
    positions = sample_positions(draws, space[0] * space[1], 3)
    expected = [features[i, :, p // space[1], p % space[1]] for i in range(6) for p in positions[i].tolist()]
    torch.testing.assert_close(sample_features(features, draws, 3), torch.stack(expected))


def test_sampling_from_vectors_returns_them_unchanged():
    features = torch.randn(6, 4)
    torch.testing.assert_close(sample_features(features, torch.rand(6), 3), features)


def test_the_mean_over_sampled_positions_is_unbiased():
    features = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    draws = (torch.arange(7000) + 0.5) / 7000
    means = sample_features(features.expand(7000, -1, -1, -1), draws, 4).mean(dim=0)
    torch.testing.assert_close(means, features.mean(dim=(0, 2, 3)), atol=1e-3, rtol=0)
