"""Test which stored images are held out from training."""

import numpy as np
import pytest

from ka_ray.errors import InputError
from ka_ray.training.batches import MAX_HELD_OUT, hold_out_rows


@pytest.mark.parametrize(("num_rows", "held_out"), [(10, 1), (180, 18), (5000, 500), (50_000, MAX_HELD_OUT)])
def test_a_tenth_is_held_out_but_not_more_than_is_needed(num_rows: int, held_out: int) -> None:
    learned, judged = hold_out_rows(num_rows, seed=3)
    assert len(judged) == held_out
    assert sorted([*learned.tolist(), *judged.tolist()]) == list(range(num_rows))
    assert np.array_equal(hold_out_rows(num_rows, seed=3)[1], judged)
    if num_rows > 10:
        assert not np.array_equal(hold_out_rows(num_rows, seed=4)[1], judged)


def test_too_few_images_to_hold_any_out_are_refused() -> None:
    with pytest.raises(InputError, match=r"images: 4 are too few .* student.start: random"):
        hold_out_rows(4, seed=0)
