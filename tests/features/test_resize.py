"""Test resizing against loops over windows and against the formula of bilinear interpolation."""

import numpy as np
import pytest
import torch
from PIL import Image

from ka_ray.errors import InputError
from ka_ray.features.resize import check_resizable, resize_features


def random_maps(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width)


def bilinear(values: np.ndarray, size: int) -> np.ndarray:
    """Resize the last axis; output i is at (i + 1/2) * old / new - 1/2 of the input, clipped to its ends."""
    old = values.shape[-1]
    out = np.empty((*values.shape[:-1], size))
    for i in range(size):
        position = min(max((i + 0.5) * old / size - 0.5, 0), old - 1)
        left = min(int(position), old - 2) if old > 1 else 0
        right, fraction = min(left + 1, old - 1), position - left
        out[..., i] = (1 - fraction) * values[..., left] + fraction * values[..., right]
    return out


def bilinear_2d(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    by_rows = bilinear(values.swapaxes(-1, -2), rows).swapaxes(-1, -2)
    return bilinear(by_rows, columns)


@pytest.mark.parametrize(
    ("size", "space"), [((8, 8), (4, 4)), ((12, 6), (3, 6)), ((9, 10), (3, 2)), ((7, 7), (1, 1))]
)
def test_a_larger_map_is_averaged_over_equal_windows(size, space):
    features = random_maps(*size)
    (height, width), (rows, columns) = size, space
    windows = features.numpy().reshape(2, 3, rows, height // rows, columns, width // columns)
    np.testing.assert_allclose(resize_features(features, space).numpy(), windows.mean(axis=(3, 5)), atol=1e-6)


@pytest.mark.parametrize(("size", "space"), [((5, 7), (2, 3)), ((25, 25), (8, 8))])
def test_windows_of_a_fractional_ratio_cover_every_value(size, space):
    features = random_maps(*size)
    resized = resize_features(features, space).numpy()
    (height, width), (rows, columns) = size, space
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            window = features.numpy()[:, :, top:bottom, left:right]
            np.testing.assert_allclose(resized[:, :, i, j], window.mean(axis=(2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "space"), [((2, 2), (4, 4)), ((3, 4), (7, 9)), ((4, 4), (4, 8)), ((1, 3), (2, 6))]
)
def test_a_smaller_map_is_interpolated_bilinearly(size, space):
    features = random_maps(*size)
    expected = bilinear_2d(features.numpy().astype(float), *space)
    np.testing.assert_allclose(resize_features(features, space).numpy(), expected, atol=1e-6)


def test_interpolation_equals_that_of_pillow():
    features = random_maps(4, 5)
    resized = resize_features(features, (9, 8)).numpy()
    for image in range(2):
        for channel in range(3):
            picture = Image.fromarray(features[image, channel].numpy())
            by_pillow = np.asarray(picture.resize((8, 9), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(resized[image, channel], by_pillow, atol=1e-5)


@pytest.mark.parametrize(("size", "space"), [((8, 3), (4, 6)), ((3, 8), (6, 2))])
def test_a_shrinking_axis_is_averaged_and_a_growing_one_interpolated(size, space):
    features = random_maps(*size)
    averaged = features.numpy().astype(float)
    if size[0] > space[0]:
        averaged = averaged.reshape(2, 3, space[0], size[0] // space[0], size[1]).mean(axis=3)
    else:
        averaged = averaged.reshape(2, 3, size[0], space[1], size[1] // space[1]).mean(axis=4)
    expected = bilinear_2d(averaged, *space)
    np.testing.assert_allclose(resize_features(features, space).numpy(), expected, atol=1e-6)


def test_a_map_resized_to_a_vector_is_its_mean():
    features = random_maps(3, 5)
    np.testing.assert_allclose(
        resize_features(features, ()).numpy(), features.numpy().mean((2, 3)), atol=1e-6
    )


def test_a_vector_becomes_a_map_of_one_position():
    vector = torch.randn(4, 6)
    assert torch.equal(resize_features(vector, (1, 1)), vector.reshape(4, 6, 1, 1))


@pytest.mark.parametrize("space", [(4, 5), (), (1, 1)])
def test_features_of_the_right_size_are_returned_unchanged(space):
    features = torch.randn(2, 3, *space)
    assert resize_features(features, tuple(features.shape[2:])) is features
    assert resize_features(features, list(features.shape[2:])) is features


@pytest.mark.parametrize("space", [(2, 2), (9, 9), (3, 9), (9, 3), (1, 1), (5, 4), ()])
def test_a_constant_map_stays_constant(space):
    constants = torch.tensor([[1.5, -2.0], [0.25, 3.0]])
    resized = resize_features(constants[:, :, None, None].expand(2, 2, 6, 5), space)
    assert resized.shape == (2, 2, *space)
    expected = constants.reshape(2, 2, *[1] * len(space)).expand(2, 2, *space)
    torch.testing.assert_close(resized, expected)


@pytest.mark.parametrize("space", [(2, 2), (9, 9), (3, 9)])
def test_every_channel_is_resized_by_itself(space):
    features = random_maps(6, 5)
    per_channel = torch.cat([resize_features(features[:, i : i + 1], space) for i in range(3)], dim=1)
    torch.testing.assert_close(resize_features(features, space), per_channel)


def test_resizing_keeps_half_precision():
    assert resize_features(random_maps(6, 6).half(), (3, 3)).dtype == torch.float16
    assert resize_features(random_maps(3, 3).half(), (6, 6)).dtype == torch.float16


def test_a_vector_is_refused_for_a_map_with_tap_and_teacher_named():
    with pytest.raises(InputError) as caught:
        check_resizable("late", "signs", (512,), (4, 4))
    for part in ("taps.late", "signs", "vector", "(4, 4)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "space"), [((512,), (1, 1)), ((512,), ()), ((8, 4, 4), ()), ((8, 4, 4), (9, 2))]
)
def test_shapes_that_pass_the_check_can_be_resized(shape, space):
    check_resizable("late", "signs", shape, space)
    assert resize_features(torch.zeros(2, *shape), space).shape == (2, shape[0], *space)
