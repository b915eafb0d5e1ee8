"""Test that moments equal those of numpy, however the features are split into batches and ranks."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from ka_ray.numerics.moments import BLOCK_COLUMNS, BUFFERED_ROWS, Moments, MomentsMeter


def make_features(count: int = 60, channels: int = 5) -> torch.Tensor:
    mixing = torch.randn(channels, channels, dtype=torch.float64)
    return torch.randn(count, channels, dtype=torch.float64) @ mixing + 3


def assert_moments_equal(moments: Moments, features: np.ndarray) -> None:
    assert moments.count == len(features)
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T, bias=True), rtol=1e-9, atol=1e-12)


def test_moments_equal_those_of_numpy():
    features = make_features()
    assert_moments_equal(Moments.of(features), features.numpy())


def test_moments_of_maps_are_taken_over_images_and_positions():
    maps = torch.randn(6, 4, 3, 2)
    flat = maps.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 4)
    moments = Moments.of(maps)
    assert moments.mean.dtype == torch.float64
    assert_moments_equal(moments, flat)


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 20, 20], [1] * 60, [0, 13, 0, 47]])
def test_merged_moments_of_parts_equal_those_of_all_features(sizes):
    features = make_features()
    merged = Moments.empty(5)
    for part in features.split(sizes):
        merged = merged.merge(Moments.of(part) if len(part) else Moments.empty(5))
    assert_moments_equal(merged, features.numpy())


def test_the_order_of_merging_does_not_matter():
    features = make_features()
    parts = [Moments.of(part) for part in features.split([7, 13, 40])]
    for order in itertools.permutations(parts):
        assert_moments_equal(order[0].merge(order[1]).merge(order[2]), features.numpy())
    assert_moments_equal(parts[0].merge(parts[1].merge(parts[2])), features.numpy())


def test_merging_empty_moments_changes_nothing():
    moments = Moments.of(make_features())
    for merged in (moments.merge(Moments.empty(5)), Moments.empty(5).merge(moments)):
        assert merged.count == moments.count
        torch.testing.assert_close(merged.scatter, moments.scatter)
    assert Moments.empty(5).merge(Moments.empty(5)).count == 0
    assert Moments.empty(5).covariance.abs().max() == 0


def test_merging_keeps_precision_with_a_large_mean():
    features = make_features()
    shifted = features + 1e7
    merged = Moments.empty(5)
    for part in shifted.split(7):
        merged = merged.merge(Moments.of(part))
    np.testing.assert_allclose(merged.covariance, np.cov(features.T, bias=True), rtol=1e-6)


def test_half_precision_features_are_summed_in_float64():
    features = (torch.rand(4000, 2) * 60_000).half()
    assert_moments_equal(Moments.of(features), features.double().numpy())


def meter_total(parts: Iterable[torch.Tensor], channels: int) -> Moments:
    meter = MomentsMeter(channels)
    for part in parts:
        meter.add(part)
    return meter.total


@pytest.mark.parametrize("sizes", [[60], [1, 59], [1] * 60, [0, 13, 0, 47]])
def test_the_total_of_a_meter_equals_the_moments_of_all_features_for_any_batch_sizes(sizes):
    features = make_features()
    assert_moments_equal(meter_total(features.split(sizes), 5), features.numpy())


def test_the_total_of_a_meter_without_features_is_empty():
    for moments in (meter_total([], 3), meter_total([torch.zeros(0, 3)], 3)):
        assert moments.count == 0
        assert moments.mean.abs().max() == moments.scatter.abs().max() == 0


def test_a_meter_handles_more_channels_than_one_block():
    features = torch.randn(40, BLOCK_COLUMNS + 9, dtype=torch.float64)
    torch.testing.assert_close(
        meter_total(features.split(17), BLOCK_COLUMNS + 9).scatter, Moments.of(features).scatter
    )


def test_small_batches_are_buffered_and_the_total_is_available_at_any_time():
    features = torch.randn(2 * BUFFERED_ROWS + 50, 3, dtype=torch.float64) + 5
    meter = MomentsMeter(3)
    for number, part in enumerate(features.split(30)):
        meter.add(part)
        if number % 20 == 0:  # reading the total flushes the buffer
            assert meter.total.count == 30 * (number + 1)
    expected = Moments.of(features)
    assert meter.total.count == expected.count
    torch.testing.assert_close(meter.total.mean, expected.mean, atol=0, rtol=1e-13)
    torch.testing.assert_close(meter.total.scatter, expected.scatter, atol=0, rtol=1e-11)


def test_a_meter_takes_maps_and_keeps_precision_with_a_large_mean():
    maps = torch.randn(6, 4, 3, 2, dtype=torch.float64) + 1e7
    flat = maps.numpy().transpose(0, 2, 3, 1).reshape(-1, 4)
    covariance = meter_total(maps.split(1), 4).covariance
    np.testing.assert_allclose(covariance, np.cov(flat.T, bias=True), rtol=1e-5, atol=1e-6)


def test_without_a_process_group_merging_over_ranks_changes_nothing():
    moments = Moments.of(make_features())
    assert moments.merge_over_ranks() is moments


@pytest.mark.parametrize("code_channels", [1, 2, 4, 5])
def test_the_optimal_error_is_the_share_of_the_eigenvalues_past_the_code_channels(code_channels):
    features = make_features()
    eigenvalues = np.linalg.eigh(np.cov(features.numpy().T, bias=True))[0][::-1]
    expected = eigenvalues[code_channels:].sum() / eigenvalues.sum()
    assert Moments.of(features).optimal_relative_error(code_channels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("code_channels", [1, 3])
def test_the_optimal_error_is_that_of_the_principal_subspace(code_channels):
    features = make_features().numpy()
    centred = features - features.mean(0)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:code_channels]
    error = ((centred - centred @ basis.T @ basis) ** 2).sum() / (centred**2).sum()
    optimum = Moments.of(torch.from_numpy(features)).optimal_relative_error(code_channels)
    assert optimum == pytest.approx(error, rel=1e-9)


def test_the_optimal_error_of_features_in_a_subspace_is_zero():
    features = torch.randn(100, 2, dtype=torch.float64) @ torch.randn(2, 6, dtype=torch.float64)
    moments = Moments.of(features)
    assert moments.optimal_relative_error(2) == pytest.approx(0, abs=1e-12)
    assert moments.optimal_relative_error(1) > 1e-3


@pytest.mark.parametrize("outputs", [1, 3, 5])
def test_the_expected_squared_norm_of_an_affine_map_is_its_mean_over_the_data(outputs):
    features = make_features()
    weight, bias = torch.randn(outputs, 5).double(), torch.randn(outputs).double()
    expected = (features @ weight.T + bias).square().sum(dim=1).mean()
    torch.testing.assert_close(Moments.of(features).expected_squared_norm(weight, bias), expected)
