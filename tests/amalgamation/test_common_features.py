"""The common feature learner: MMD agrees with a double loop, the decoder with least squares."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ka_ray.amalgamation import CommonFeatureLearner, common_features
from ka_ray.amalgamation.common_features import mean_squared_mmd
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments

CHANNELS, CODE_CHANNELS = (8, 6, 10), 5


def make_features(count: int = 640) -> Tensor:
    """Make features of teachers that share four latent variables; noise and scale differ per teacher."""
    latent = torch.randn(count, 4)
    parts = [
        10.0**t * (latent @ torch.randn(4, channels) + 0.1 * torch.randn(count, channels)) + 1
        for t, channels in enumerate(CHANNELS)
    ]
    return torch.cat(parts, dim=1)


def train(features: Tensor, steps: int) -> CommonFeatureLearner:
    torch.manual_seed(0)
    learner = CommonFeatureLearner(Moments.of(features), CHANNELS, CODE_CHANNELS)
    optimizer = torch.optim.Adam(learner.parameters(), 2e-2, betas=(0.9, 0.95))
    for _ in range(steps):
        optimizer.zero_grad()
        learner(features[torch.randint(len(features), (128,))]).backward()
        optimizer.step()
    return learner


def squared_mmd(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """Compute equation 3 of Gretton et al. (2012) point by point."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        squared = ((a - b) ** 2).sum()
        return float(np.mean([math.exp(-squared / (w * bandwidth)) for w in (0.25, 0.5, 1, 2, 4)]))

    size = len(x)
    distinct = [(i, j) for i in range(size) for j in range(size) if i != j]
    own = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in distinct) / len(distinct)
    return own - 2 * sum(kernel(a, b) for a in x for b in y) / size**2


def mmd_by_loops(codes: np.ndarray, group_size: int) -> float:
    """Compute the mean over groups of ``group_size`` positions and over pairs of teachers."""
    estimates = []
    for start in range(0, codes.shape[1] - group_size + 1, group_size):
        group = codes[:, start : start + group_size]
        points = group.reshape(-1, codes.shape[2])
        distances = [((a - b) ** 2).sum() for i, a in enumerate(points) for b in points[:i]]
        pairs = [(t, s) for t in range(len(group)) for s in range(t)]
        estimates += [squared_mmd(group[t], group[s], float(np.mean(distances))) for t, s in pairs]
    return float(np.mean(estimates))


@pytest.mark.parametrize(
    ("teachers", "count", "group_size"), [(2, 64, 32), (3, 32, 32), (2, 70, 32), (3, 10, 10), (2, 2, 2)]
)
def test_the_mmd_equals_a_double_loop(teachers, count, group_size):
    codes = torch.randn(teachers, count, 3, dtype=torch.float64) + torch.arange(teachers)[:, None, None]
    expected = mmd_by_loops(codes.numpy(), group_size)
    assert mean_squared_mmd(codes).item() == pytest.approx(expected, rel=1e-9)


def test_the_mmd_is_positive_only_for_different_distributions():
    same = torch.randn(2, 3200, 4)
    shifted, wider = same.clone(), same.clone()
    shifted[1] += 0.7
    wider[1] *= 2
    assert abs(mean_squared_mmd(same).item()) < 5e-3
    assert mean_squared_mmd(shifted).item() > 0.03
    assert mean_squared_mmd(wider).item() > 0.03


def test_the_mmd_is_smallest_if_the_codes_are_equal_at_each_position():
    """The codes of all three pairs have the same distribution, but only the last pair has equal codes."""
    points = torch.randn(3200, 4)
    independent = mean_squared_mmd(torch.stack([points, torch.randn(3200, 4)]))
    mirrored = mean_squared_mmd(torch.stack([points, -points]))
    equal = mean_squared_mmd(torch.stack([points, points]))
    assert equal < independent - 0.01
    assert equal < mirrored - 0.01


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_the_mmd_does_not_depend_on_the_scale_of_the_codes(scale):
    codes = torch.randn(3, 96, 5) + torch.arange(3)[:, None, None]
    torch.testing.assert_close(mean_squared_mmd(scale * codes), mean_squared_mmd(codes))


def test_the_gradient_of_the_mmd_is_orthogonal_to_the_codes():
    codes = (torch.randn(3, 96, 5) + torch.arange(3)[:, None, None]).requires_grad_()
    mean_squared_mmd(codes).backward()
    product = (codes.grad * codes).sum()
    assert product.abs() < 1e-4 * codes.grad.norm() * codes.norm()


@pytest.mark.parametrize("count", [1, 32, 64])
def test_equal_points_have_finite_gradients(count):
    codes = torch.full((2, count, 3), 1.7, requires_grad=True)
    mean_squared_mmd(codes).backward()
    assert codes.grad.isfinite().all()


def test_the_loss_is_the_sum_of_relative_reconstruction_errors_and_the_mmd():
    features = make_features()
    learner = train(features, 5)
    expected = 0.0
    for teacher, part in zip(learner.teachers, features.split(CHANNELS, dim=1), strict=True):
        squared_error = (teacher.to_autoencoder()(part) - part).double().square().mean()
        expected += 0.5 * (squared_error / part.double().var(dim=0, correction=0).mean()).item()
    expected += common_features.MMD_WEIGHT * mean_squared_mmd(learner.encode(features)).item()
    assert learner(features).item() == pytest.approx(expected, rel=1e-3)


def test_training_lowers_the_mmd_between_the_teachers_codes(monkeypatch):
    features = make_features()
    start = mean_squared_mmd(train(features, 0).encode(features))
    learned = train(features, 250)
    monkeypatch.setattr(common_features, "MMD_WEIGHT", 0.0)
    without_mmd = train(features, 250)
    learned_mmd = mean_squared_mmd(learned.encode(features))
    assert learned_mmd < start - 0.01
    assert learned_mmd < mean_squared_mmd(without_mmd.encode(features)) - 0.01
    moments = Moments.of(features)
    errors = [learner.to_autoencoder().relative_error(moments) for learner in (learned, without_mmd)]
    assert errors[0] < 0.5 * errors[1]


def test_the_code_is_the_mean_of_the_teachers_codes():
    features = make_features()
    learner = train(features, 20)
    expected = learner.encode(features).mean(dim=0)
    torch.testing.assert_close(learner.to_autoencoder().encode(features), expected, rtol=1e-4, atol=1e-4)


def test_the_decoder_is_the_least_squares_solution():
    features = make_features()
    autoencoder = train(features, 20).to_autoencoder()
    code = autoencoder.double().encode(features.double()).detach().numpy()
    design = np.hstack([code, np.ones((len(code), 1))])
    solution = np.linalg.lstsq(design, features.double().numpy(), rcond=None)[0]
    scale = np.abs(solution).max()
    np.testing.assert_allclose(autoencoder.decoder.weight.detach().T, solution[:-1], atol=1e-5 * scale)
    np.testing.assert_allclose(autoencoder.decoder.bias.detach(), solution[-1], atol=1e-5 * scale)


def test_a_code_wider_than_the_rank_of_the_features_rebuilds_them_exactly():
    features = torch.randn(640, 2) @ torch.randn(2, sum(CHANNELS)) + 1
    autoencoder = CommonFeatureLearner(Moments.of(features), CHANNELS, 12).to_autoencoder()
    assert autoencoder.relative_error(Moments.of(features)) < 1e-4
    torch.testing.assert_close(autoencoder(features), features, rtol=1e-2, atol=1e-2)


def test_a_teacher_with_constant_features_is_refused():
    features = make_features()
    features[:, 8:14] = 2.0
    with pytest.raises(InputError, match=r"teacher 2 of 3 never vary.*codes\.method"):
        CommonFeatureLearner(Moments.of(features), CHANNELS, CODE_CHANNELS)
