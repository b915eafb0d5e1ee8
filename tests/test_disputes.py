"""Test which images count as disputed, against a plain loop over all of them."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from ka_ray.disputes import MAX_DISPUTES, find_disputes, most_disputed

CLASSES = ("cat", "dog", "owl")


def make_batch(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=3, size=(2, count, 3)).astype(np.float32)
    pixels = rng.integers(0, 256, size=(count, 3, 20, 30), dtype=np.uint8)
    labels = [CLASSES[i % 3] if i % 2 else "" for i in range(count)]
    return np.arange(100, 100 + count), labels, pixels, *scores, CLASSES


def dispute_by_hand(batch):
    """Return (certainty, id, label, answers) of all disputed images, the surest first."""
    ids, labels, _, student, ensemble, classes = batch
    found = []
    for i, (ours, theirs) in enumerate(zip(student, ensemble, strict=True)):
        a, b = softmax(ours.astype(np.float64)), softmax(theirs.astype(np.float64))
        if a.argmax() != b.argmax():
            answers = (classes[a.argmax()], classes[b.argmax()])
            found.append((min(a.max(), b.max()), int(ids[i]), labels[i], answers))
    return sorted(found, key=lambda one: -one[0])


def test_the_most_disputed_images_are_those_of_which_both_are_surest():
    batch = make_batch(200)
    found, expected = find_disputes(*batch), dispute_by_hand(batch)
    assert len(expected) > len(found) == MAX_DISPUTES
    for one, (certainty, image_id, label, answers) in zip(found, expected, strict=False):
        assert one.certainty == pytest.approx(certainty, abs=1e-12)
        assert (one.image_id, one.label, (one.student, one.ensemble)) == (image_id, label, answers)


def test_images_of_which_both_say_the_same_are_not_disputed():
    ids, labels, pixels, student, _, classes = make_batch(50)
    assert find_disputes(ids, labels, pixels, student, 2 * student, classes) == []


def test_batches_in_any_order_give_the_most_disputed_of_all():
    whole = make_batch(300)
    parts = []
    for start in range(0, 300, 60):
        rows = slice(start, start + 60)
        parts.append(find_disputes(*(column[rows] for column in whole[:-1]), CLASSES))
    random.Random(1).shuffle(parts)
    merged = []
    for part in parts:
        merged = most_disputed([*merged, *part])
    assert [one.image_id for one in merged] == [row[1] for row in dispute_by_hand(whole)[:MAX_DISPUTES]]


@pytest.mark.parametrize(("height", "width", "size"), [(20, 30, (30, 20)), (300, 150, (64, 128))])
def test_the_picture_shows_the_students_pixels(height, width, size):
    ids, labels, _, student, _, classes = make_batch(1)
    pixels = np.zeros((1, 3, height, width), np.uint8)
    pixels[:, 0] = 200  # red
    [one] = find_disputes(ids, labels, pixels, student, -student, classes)
    picture = Image.open(io.BytesIO(one.picture))
    assert picture.size == size
    assert np.abs(np.asarray(picture).astype(int) - [200, 0, 0]).max() <= 3


def test_the_picture_of_a_grey_image_is_grey():
    ids, labels, _, student, _, classes = make_batch(1)
    pixels = np.full((1, 1, 8, 6), 90, np.uint8)
    [one] = find_disputes(ids, labels, pixels, student, -student, classes)
    picture = Image.open(io.BytesIO(one.picture))
    assert (picture.mode, picture.size) == ("L", (6, 8))
    assert np.abs(np.asarray(picture).astype(int) - 90).max() <= 3


def test_scores_that_are_no_numbers_dispute_nothing():
    ids, labels, pixels, student, ensemble, classes = make_batch(40)
    student[:39] = np.nan
    student[39], ensemble[39] = (5, 0, 0), (0, 5, 0)
    with np.errstate(invalid="ignore"):
        found = find_disputes(ids, labels, pixels, student, ensemble, classes)
    assert [(one.image_id, one.student, one.ensemble) for one in found] == [(139, "cat", "dog")]
