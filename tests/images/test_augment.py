"""Views of images against a loop over pixels."""

import numpy as np
import pytest
import torch

from ka_ray.config import Augmentation
from ka_ray.images.augment import NUM_DRAWS, augment


def by_loop(images: np.ndarray, config: Augmentation, draws: np.ndarray) -> np.ndarray:
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


def images_and_draws(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (count, 3, 5, 7), dtype=torch.uint8)
    return images, torch.rand(count, NUM_DRAWS)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 3, 9])
def test_views_are_those_of_the_loop(flip, shift):
    images, draws = images_and_draws()
    config = Augmentation(flip=flip, shift=shift)
    views = augment(images, config, draws)
    assert views.dtype == torch.uint8
    np.testing.assert_array_equal(views.numpy(), by_loop(images.numpy(), config, draws.numpy()))


def test_off_changes_nothing():
    images, draws = images_and_draws()
    assert not Augmentation().on
    assert torch.equal(augment(images, Augmentation(), draws), images)


def test_flip_and_shift_leave_the_given_images_alone():
    images, draws = images_and_draws()
    before = images.clone()
    augment(images, Augmentation(flip=True, shift=2), draws)
    assert torch.equal(images, before)


def test_every_shift_occurs_and_none_beyond():
    columns = torch.arange(9, dtype=torch.float32).expand(300, 1, 9, 9)
    draws = torch.rand(300, NUM_DRAWS)
    draws[0], draws[1] = 0.0, 1 - 2**-24
    centres = augment(columns, Augmentation(shift=2), draws)[:, 0, 4, 4]
    assert set((centres - 4).tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert centres[0] == 2
    assert centres[1] == 6


def test_a_view_depends_on_its_own_draws_alone():
    images, draws = images_and_draws()
    config = Augmentation(flip=True, shift=2)
    halves = [augment(images[part], config, draws[part]) for part in (slice(0, 5), slice(5, 12))]
    assert torch.equal(torch.cat(halves), augment(images, config, draws))
