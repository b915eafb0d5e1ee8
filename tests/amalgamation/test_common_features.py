"""The common space: discrepancy against a double loop, decoder against least squares."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ka_ray.amalgamation import CommonFeatureLearner, common_features
from ka_ray.amalgamation.common_features import discrepancy
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments

CHANNELS, CODE_CHANNELS = (8, 6, 10), 5


def make_features(count: int = 640) -> Tensor:
    """Teachers that see the same four things and a little besides, in different units."""
    seen = torch.randn(count, 4)
    parts = [
        10.0**t * (seen @ torch.randn(4, channels) + 0.1 * torch.randn(count, channels)) + 1
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


def squared_mmd(x: np.ndarray, y: np.ndarray, spread: float) -> float:
    """Gretton et al. (2012), equation 3, point by point."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        squared = ((a - b) ** 2).sum()
        return float(np.mean([math.exp(-squared / (w * spread)) for w in (0.25, 0.5, 1, 2, 4)]))

    size = len(x)
    distinct = [(i, j) for i in range(size) for j in range(size) if i != j]
    own = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in distinct) / len(distinct)
    return own - 2 * sum(kernel(a, b) for a in x for b in y) / size**2


def loop_discrepancy(codes: np.ndarray, size: int) -> float:
    found = []
    for start in range(0, codes.shape[1] - size + 1, size):
        group = codes[:, start : start + size]
        points = group.reshape(-1, codes.shape[2])
        distances = [((a - b) ** 2).sum() for i, a in enumerate(points) for b in points[:i]]
        pairs = [(t, s) for t in range(len(group)) for s in range(t)]
        found += [squared_mmd(group[t], group[s], float(np.mean(distances))) for t, s in pairs]
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("teachers", "count", "size"), [(2, 64, 32), (3, 32, 32), (2, 70, 32), (3, 10, 10), (2, 2, 2)]
)
def test_the_discrepancy_is_the_double_loop(teachers, count, size):
    codes = torch.randn(teachers, count, 3, dtype=torch.float64) + torch.arange(teachers)[:, None, None]
    expected = loop_discrepancy(codes.numpy(), size)
    assert discrepancy(codes).item() == pytest.approx(expected, rel=1e-9)


def test_only_different_distributions_differ():
    same = torch.randn(2, 3200, 4)
    shifted, wider = same.clone(), same.clone()
    shifted[1] += 0.7
    wider[1] *= 2
    assert abs(discrepancy(same).item()) < 5e-3
    assert discrepancy(shifted).item() > 0.03
    assert discrepancy(wider).item() > 0.03


def test_points_of_one_position_are_pulled_together():
    """The same distributions three times: sets that agree position by position are the closest."""
    points = torch.randn(3200, 4)
    apart = discrepancy(torch.stack([points, torch.randn(3200, 4)]))
    mirrored = discrepancy(torch.stack([points, -points]))
    equal = discrepancy(torch.stack([points, points]))
    assert equal < apart - 0.01
    assert equal < mirrored - 0.01


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_the_scale_of_the_codes_does_not_matter(scale):
    codes = torch.randn(3, 96, 5) + torch.arange(3)[:, None, None]
    torch.testing.assert_close(discrepancy(scale * codes), discrepancy(codes))


def test_no_gradient_shrinks_or_widens_the_codes():
    codes = (torch.randn(3, 96, 5) + torch.arange(3)[:, None, None]).requires_grad_()
    discrepancy(codes).backward()
    along = (codes.grad * codes).sum()
    assert along.abs() < 1e-4 * codes.grad.norm() * codes.norm()


@pytest.mark.parametrize("count", [1, 32, 64])
def test_points_that_all_agree_give_finite_gradients(count):
    codes = torch.full((2, count, 3), 1.7, requires_grad=True)
    discrepancy(codes).backward()
    assert codes.grad.isfinite().all()


def test_the_loss_is_rebuilding_in_units_of_each_teachers_variance_and_the_discrepancy():
    features = make_features()
    learner = train(features, 5)
    expected = 0.0
    for teacher, part in zip(learner.teachers, features.split(CHANNELS, dim=1), strict=True):
        lost = (teacher.to_autoencoder()(part) - part).double().square().mean()
        expected += 0.5 * (lost / part.double().var(dim=0, correction=0).mean()).item()
    expected += common_features.DISCREPANCY_WEIGHT * discrepancy(learner.encode(features)).item()
    assert learner(features).item() == pytest.approx(expected, rel=1e-3)


def test_training_brings_the_teachers_together(monkeypatch):
    features = make_features()
    start = discrepancy(train(features, 0).encode(features))
    learned = train(features, 250)
    monkeypatch.setattr(common_features, "DISCREPANCY_WEIGHT", 0.0)
    alone = train(features, 250)
    found = discrepancy(learned.encode(features))
    assert found < start - 0.01
    assert found < discrepancy(alone.encode(features)) - 0.01
    moments = Moments.of(features)
    errors = [learner.to_autoencoder().relative_error(moments) for learner in (learned, alone)]
    assert errors[0] < 0.5 * errors[1]


def test_the_code_is_the_mean_of_the_teachers_codes():
    features = make_features()
    learner = train(features, 20)
    expected = learner.encode(features).mean(dim=0)
    torch.testing.assert_close(learner.to_autoencoder().encode(features), expected, rtol=1e-4, atol=1e-4)


def test_the_decoder_is_the_least_squares_solution():
    features = make_features()
    collapsed = train(features, 20).to_autoencoder()
    code = collapsed.double().encode(features.double()).detach().numpy()
    design = np.hstack([code, np.ones((len(code), 1))])
    solution = np.linalg.lstsq(design, features.double().numpy(), rcond=None)[0]
    scale = np.abs(solution).max()
    np.testing.assert_allclose(collapsed.decoder.weight.detach().T, solution[:-1], atol=1e-5 * scale)
    np.testing.assert_allclose(collapsed.decoder.bias.detach(), solution[-1], atol=1e-5 * scale)


def test_a_code_wider_than_the_rank_of_the_features_rebuilds_them():
    features = torch.randn(640, 2) @ torch.randn(2, sum(CHANNELS)) + 1
    collapsed = CommonFeatureLearner(Moments.of(features), CHANNELS, 12).to_autoencoder()
    assert collapsed.relative_error(Moments.of(features)) < 1e-4
    torch.testing.assert_close(collapsed(features), features, rtol=1e-2, atol=1e-2)


def test_a_dead_teacher_is_refused_by_its_place():
    features = make_features()
    features[:, 8:14] = 2.0
    with pytest.raises(InputError, match=r"teacher 2 of 3 never vary.*codes\.method"):
        CommonFeatureLearner(Moments.of(features), CHANNELS, CODE_CHANNELS)
