"""Augmented images, views of images, and mean scores over views, compared with loops over pixels."""

import numpy as np
import pytest
import torch

from ka_ray.config import Augmentation, ScoresConfig
from ka_ray.images.augment import NUM_VIEW_DRAWS, augment, generate_views, score_views, shift


def augment_by_loop(images: np.ndarray, config: Augmentation, draws: np.ndarray) -> np.ndarray:
    views = np.empty_like(images)
    count, channels, height, width = images.shape
    for i in range(count):
        image = images[i][:, :, ::-1] if config.flip and draws[i, 0] < 0.5 else images[i]
        down = int(draws[i, 1] * (2 * config.shift + 1)) - config.shift
        right = int(draws[i, 2] * (2 * config.shift + 1)) - config.shift
        for channel in range(channels):
            for y in range(height):
                for x in range(width):
                    source = min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)
                    views[i, channel, y, x] = image[channel, *source]
    return views


def shift_by_padding(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Shift by reading from an image whose border was repeated beforehand."""
    padding = max(abs(down), abs(right), 1)
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)), mode="edge")
    height, width = images.shape[2:]
    return padded[:, :, padding + down : padding + down + height, padding + right : padding + right + width]


def random_images_and_draws(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (count, 3, 5, 7), dtype=torch.uint8)
    return images, torch.rand(count, NUM_VIEW_DRAWS)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 3, 9])
def test_augment_equals_a_loop_over_pixels(flip, shift):
    images, draws = random_images_and_draws()
    config = Augmentation(flip=flip, shift=shift)
    views = augment(images, config, draws)
    assert views.dtype == torch.uint8
    np.testing.assert_array_equal(views.numpy(), augment_by_loop(images.numpy(), config, draws.numpy()))


def test_augment_without_options_changes_nothing():
    images, draws = random_images_and_draws()
    assert not Augmentation().on
    assert torch.equal(augment(images, Augmentation(), draws), images)


def test_augment_does_not_change_its_input():
    images, draws = random_images_and_draws()
    before = images.clone()
    augment(images, Augmentation(flip=True, shift=2), draws)
    assert torch.equal(images, before)


def test_augment_uses_every_shift_within_the_limit_and_none_beyond():
    columns = torch.arange(9, dtype=torch.float32).expand(300, 1, 9, 9)
    draws = torch.rand(300, NUM_VIEW_DRAWS)
    draws[0], draws[1] = 0.0, 1 - 2**-24
    centres = augment(columns, Augmentation(shift=2), draws)[:, 0, 4, 4]
    assert set((centres - 4).tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert centres[0] == 2
    assert centres[1] == 6


def test_a_view_depends_only_on_its_own_draws():
    images, draws = random_images_and_draws()
    config = Augmentation(flip=True, shift=2)
    halves = [augment(images[part], config, draws[part]) for part in (slice(0, 5), slice(5, 12))]
    assert torch.equal(torch.cat(halves), augment(images, config, draws))


def test_each_image_is_shifted_by_its_own_offset():
    images, _ = random_images_and_draws(5)
    offsets = torch.tensor([[0, 0], [2, -1], [-3, 0], [1, 9], [-9, -9]])
    shifted = shift(images, offsets)
    for image, (down, right) in enumerate(offsets.tolist()):
        expected = shift_by_padding(images[image : image + 1].numpy(), down, right)[0]
        np.testing.assert_array_equal(shifted[image].numpy(), expected)


MIRRORED = np.s_[:, :, :, ::-1]
SHIFTS = [(0, 0), (3, 0), (-3, 0), (0, 3), (0, -3)]
"""Offsets (down, right) of the views of ``shift`` with a limit of 3 pixels."""


@pytest.mark.parametrize(
    ("names", "sides", "shifts"),
    [
        ([], [False], SHIFTS[:1]),
        (["flip"], [False, True], SHIFTS[:1]),
        (["shift"], [False], SHIFTS),
        (["flip", "shift"], [False, True], SHIFTS),
        (["shift", "flip"], [False, True], SHIFTS),
    ],
    ids=lambda value: "+".join(map(str, value)) or "none",
)
def test_generate_views_yields_the_images_then_all_mirrored_and_shifted_ones(names, sides, shifts):
    images, _ = random_images_and_draws()
    before = images.clone()
    found = list(generate_views(images, ScoresConfig(views=names, shift=3)))
    assert len(found) == len(sides) * len(shifts)
    expected = [
        shift_by_padding(images.numpy()[MIRRORED] if side else images.numpy(), *move)
        for side in sides
        for move in shifts
    ]
    for view, expected_view in zip(found, expected, strict=True):
        assert view.dtype == torch.uint8
        np.testing.assert_array_equal(view.numpy(), expected_view)
    assert torch.equal(found[0], before)
    assert torch.equal(images, before)


class RecordingScorer:
    """Computes scores that differ between views, and records the images that it was called with."""

    def __init__(self) -> None:
        self.called_with: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.called_with.append(images)
        return torch.stack([images[:, 0, 0, 0], images[:, 1, -1, -1] * 2.0], dim=1).float()


@pytest.mark.parametrize(
    ("names", "count"), [([], 1), (["flip"], 2), (["shift"], 5), (["flip", "shift"], 10)]
)
def test_score_views_is_the_mean_over_all_views(names, count):
    images, _ = random_images_and_draws()
    sides = [images.numpy(), images.numpy()[MIRRORED]] if "flip" in names else [images.numpy()]
    all_views = [
        shift_by_padding(side, *move)
        for side in sides
        for move in (SHIFTS if "shift" in names else SHIFTS[:1])
    ]
    expected = np.mean([np.stack([v[:, 0, 0, 0], v[:, 1, -1, -1] * 2.0], axis=1) for v in all_views], axis=0)
    score = RecordingScorer()
    found = score_views(score, images, ScoresConfig(views=names, shift=3))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert len(score.called_with) == count


@pytest.mark.parametrize(("names", "count"), [([], 0), (["flip"], 1), (["shift"], 4), (["flip", "shift"], 9)])
def test_known_scores_are_not_computed_again(names, count):
    images, _ = random_images_and_draws()
    config = ScoresConfig(views=names, shift=3)
    score = RecordingScorer()
    found = score_views(score, images, config, known=RecordingScorer()(images))
    assert len(score.called_with) == count
    assert not any(torch.equal(view, images) for view in score.called_with)
    torch.testing.assert_close(found, score_views(RecordingScorer(), images, config))


def test_known_scores_count_as_one_view_of_the_mean():
    images, _ = random_images_and_draws(2)
    known = torch.tensor([[8.0, 0.0], [0.0, 4.0]])
    found = score_views(lambda view: torch.ones(2, 2), images, ScoresConfig(views=["flip"]), known)
    assert found.tolist() == [[4.5, 0.5], [0.5, 2.5]]
