"""Test that batch norms get the statistics of their input, and still compute the same in eval mode."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ka_ray.student.batch_norms import recalibrate_batch_norms, replace_running_stats


def norm_cases() -> list[tuple[nn.Module, tuple[int, ...]]]:
    return [(nn.BatchNorm1d(5, eps=1e-2), (64, 5)), (nn.BatchNorm2d(5), (16, 5, 3, 4))]


@pytest.mark.parametrize(("norm", "shape"), norm_cases())
@torch.no_grad()
def test_a_batch_norm_with_replaced_statistics_computes_the_same(randomised, norm, shape):
    norm, codes = randomised(norm).double(), torch.randn(shape, dtype=torch.float64)
    expected, mean, variance = norm(codes), torch.randn(5), torch.rand(5)
    replace_running_stats(norm, mean, variance)
    torch.testing.assert_close(norm(codes), expected)
    torch.testing.assert_close((norm.running_mean, norm.running_var), (mean.double(), variance.double()))


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_a_batch_norm_without_weights_or_without_statistics_is_refused(options):
    with pytest.raises(ValueError, match="only a batch norm with"):
        replace_running_stats(nn.BatchNorm2d(3, **options), torch.zeros(3), torch.ones(3))


@pytest.fixture
def network(randomised) -> nn.Module:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5))
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), linear)
    return randomised(network.double())


def make_images(count: int = 48) -> Tensor:
    return 3 * torch.randn(count, 3, 8, 8, dtype=torch.float64) + 100


@torch.no_grad()
def test_recalibrated_batch_norms_have_the_statistics_of_their_input(network):
    images = make_images()
    expected, inner = network(images), network[1](network[0](images))
    recalibrate_batch_norms(network, images.split([20, 20, 8]))
    for norm, features in ((network[0], images), (network[2], inner)):
        channels = np.moveaxis(features.numpy(), 1, -1).reshape(-1, 3)
        np.testing.assert_allclose(norm.running_mean.numpy(), channels.mean(0), rtol=1e-9)
        np.testing.assert_allclose(norm.running_var.numpy(), channels.var(0), rtol=1e-9)
    torch.testing.assert_close(network(images), expected)


@torch.no_grad()
def test_recalibrated_batch_norms_compute_the_same_in_training_and_eval_mode(network):
    images = make_images()
    expected = network(images)
    assert (copy.deepcopy(network).train()(images) - expected).abs().max() > 1
    recalibrate_batch_norms(network, [images])
    torch.testing.assert_close(network.train()(images), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_ranks_that_add_their_sums_get_the_same_statistics_as_one_process_with_all_images(network):
    images, sums = make_images(), list[Tensor]()
    single, first, second = (copy.deepcopy(network) for _ in range(3))

    def record_sums(own: Tensor) -> Tensor:
        sums.append(own.clone())
        return torch.zeros_like(own)

    for rank_network, part in ((first, images[:30]), (second, images[30:])):
        recalibrate_batch_norms(copy.deepcopy(rank_network), [part], record_sums)
    recalibrate_batch_norms(first, [images[:30]], lambda own: own + sums[1])
    recalibrate_batch_norms(second, [], lambda own: own + sums[0] + sums[1])
    recalibrate_batch_norms(single, [images])
    for rank_network in (first, second):
        torch.testing.assert_close(rank_network.state_dict(), single.state_dict())


def test_recalibrating_without_images_or_without_batch_norms_changes_nothing(network):
    before = copy.deepcopy(network.state_dict())
    recalibrate_batch_norms(network, [])
    recalibrate_batch_norms(nn.Linear(2, 2), [torch.zeros(1, 2)])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_recalibrating_restores_modes_and_hooks_after_an_error(network):
    network.train()
    network[2].eval()
    with pytest.raises(RuntimeError):
        recalibrate_batch_norms(network, [make_images(2), torch.zeros(2, 4, 8, 8)])
    assert [network.training, network[0].training, network[2].training] == [True, True, False]
    assert not any(module._forward_pre_hooks for module in network.modules())
