"""Hashed random numbers are uniform and independent, and depend only on image id and seed."""

import numpy as np
import pytest

from ka_ray.numerics.hashed_random import draw_uniform

IDS = np.arange(20_000)


def test_draws_depend_only_on_image_id_and_seed():
    whole = draw_uniform(IDS, 3, 2)
    assert whole.dtype == np.float32
    shuffled = np.random.default_rng(0).permutation(IDS)
    np.testing.assert_array_equal(draw_uniform(shuffled, 3, 2), whole[shuffled])
    assert (draw_uniform(IDS, 4, 2) == whole).mean() < 0.01


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_draws_are_uniform_and_independent(seed):
    draws = draw_uniform(IDS, seed, 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    share = np.histogram(draws, bins=20, range=(0, 1))[0] / draws.size * 20
    np.testing.assert_allclose(share, 1, atol=0.05)  # 5 standard deviations
    correlation = np.corrcoef([*draws.T, np.roll(draws[:, 0], 1), IDS])
    assert np.abs(correlation - np.eye(5)).max() < 0.035
