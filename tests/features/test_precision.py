"""Test features with a large mean and a small deviation: half precision would lose what they say."""

import numpy as np
import pytest
import torch

from ka_ray.features.precision import measure_lost_variance, needs_float32
from ka_ray.features.stack import SCORES, feature_column, stack_columns
from ka_ray.stages.code_solver import solve_links
from ka_ray.stages.codes_learner import build_amalgamations, measure_moments
from ka_ray.training.batches import Batches

CHANNELS, WIDTH, SPACE, IMAGES = (10, 6), 5, (3, 3), 600
MEAN, DEVIATION = 1000, 0.1


@pytest.fixture
def teachers() -> dict[str, np.ndarray]:
    """Features of two teachers in float64, ``[n, C, *space]``: six directions that vary, and noise."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(IMAGES, *SPACE, 6)) * 0.7 ** np.arange(6)
    values = causes @ rng.normal(size=(6, sum(CHANNELS))) + 0.05 * rng.normal(size=(IMAGES, *SPACE, 16))
    values = MEAN + DEVIATION * values / values.std((0, 1, 2))
    parts = np.split(np.moveaxis(values, -1, 1), CHANNELS[:1], axis=1)
    return dict(zip(("low", "high"), parts, strict=True))


def list_columns(teachers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns = {"image_id": np.arange(IMAGES)}
    for name, features in teachers.items():
        columns[feature_column("map", name)] = features.astype(np.float32)
        columns[feature_column(SCORES, name)] = np.zeros((IMAGES, 2), np.float32)
    return columns


def measure_code_error(rows: np.ndarray, encode: np.ndarray, bias: np.ndarray) -> float:
    """Measure the relative error of the best linear decoder of a code, in float64: ``rows [n, S]``."""
    codes = np.concatenate([rows @ encode.T + bias, np.ones((len(rows), 1))], axis=1)
    codes -= codes.mean(0) * (np.arange(codes.shape[1]) < len(bias))
    decoded = codes @ np.linalg.lstsq(codes, rows, rcond=None)[0]
    return float(((rows - decoded) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum())


@pytest.mark.parametrize("kept", [True, False])
def test_the_error_of_codes_equals_that_of_float64_only_in_float32(make_store, teachers, kept):
    whole = np.concatenate(list(teachers.values()), axis=1)
    rows = np.moveaxis(whole, 1, -1).reshape(-1, whole.shape[1])
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    least = singular[WIDTH:].sum() / singular.sum()
    assert 1e-3 < least < 0.05

    stacked = stack_columns(
        list_columns(teachers), ["map"], ["low", "high"], float32={"map"} if kept else set()
    )
    assert stacked["map"].dtype == (np.float32 if kept else np.float16)
    assert stacked[SCORES].dtype == np.float16
    batches = Batches(make_store(stacked), ["map"], 64, 0)
    moments = measure_moments(batches, {"map": 16})
    amalgamations = build_amalgamations("direct", {"map": CHANNELS}, {"map": WIDTH})
    solve_links(amalgamations, range(1), moments, {})
    (link,) = amalgamations["map"].links
    weights = link.encoder.weight.detach().double().numpy(), link.encoder.bias.detach().numpy()
    error = measure_code_error(rows, *weights)
    reported = amalgamations["map"].relative_error(moments["map"])
    if kept:
        assert error == pytest.approx(least, rel=1e-3)
        assert reported == pytest.approx(least, rel=1e-3)
    else:  # what was stored is mostly rounding
        assert abs(reported - least) > 5 * least


def test_the_lost_variance_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(40, 5, 2, 2)) * np.array([1, 0.1, 0.1, 1e-3, 10])[:, None, None]
    values += np.array([0, 1000, 1, 1, -4000])[:, None, None]
    lost = measure_lost_variance(torch.from_numpy(values)).numpy()
    for channel in range(5):
        column = values[:, channel].ravel()
        error = np.mean((column - column.astype(np.float16).astype(np.float64)) ** 2)
        assert lost[channel] == pytest.approx(error / column.var())
    np.testing.assert_array_equal(lost > 1e-3, [False, True, False, True, True])


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.randn(16, 4, 3, 3), False),
        (torch.randn(16, 4, 3, 3).relu(), False),
        (torch.randn(16, 4) * 1e-3, False),
        (torch.randn(16, 4) * 0.1 + 1000, True),
        (torch.full((16, 4), 0.3), False),  # constant: there is nothing to lose
        (torch.full((16, 4), 0.3) * (1 + 1e-7 * torch.randn(16, 4)), False),  # but for float32's own rounding
        (torch.randn(16, 4) * 1e5, True),  # beyond float16
        (torch.randn(16, 4) * 1e-9, True),  # below float16
        (torch.full((16, 4), torch.nan), False),  # refused when it is stored
    ],
)
def test_only_features_that_lose_more_than_a_thousandth_need_float32(features, expected):
    assert needs_float32(features) is expected


def test_a_channel_that_hardly_varies_beside_the_others_is_no_reason():
    features = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    features[:, 1] *= 1e-9  # filters that have decayed: float16 makes zeros of it
    assert not needs_float32(features)
    features[:, 2] = features[:, 2] * 0.1 + 1000
    assert needs_float32(features)
