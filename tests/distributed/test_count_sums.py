"""Test what the driver adds up of an evaluation, without Ray."""

import pickle
from collections import Counter

import numpy as np
import pytest

from ka_ray.amalgamation import LabelSets
from ka_ray.distributed.count_sums import CountSums
from ka_ray.metrics import Counts

LABEL_SETS = LabelSets({"low": ("a", "b")})


def make_row(ids, digests, labels):
    return {
        "counts": pickle.dumps({"student": Counts.zeros(2, 1)}),
        "image_ids": np.array(ids),
        "digests": np.array(digests, np.int64),
        "labels": pickle.dumps(Counter(labels)),
    }


@pytest.mark.parametrize("known", [0, 1, 200])
def test_images_that_were_learned_from_are_counted_as_by_a_set(known):
    rng = np.random.default_rng(known)
    learned = np.unique(rng.integers(-100, 100, known))
    sums = CountSums(LABEL_SETS, ["student"], learned)
    drawn = [rng.integers(-120, 120, 64).tolist() for _ in range(5)]
    for number, digests in enumerate(drawn):
        assert sums.add(make_row(range(64 * number, 64 * number + 64), digests, ["a", "", "a"])) == 64
    expected = sum(digest in set(learned.tolist()) for digests in drawn for digest in digests)
    assert sums.learned_images == expected
    assert sums.labels == {"a": 10, "": 5}


def test_an_image_that_comes_twice_is_an_error():
    sums = CountSums(LABEL_SETS, ["student"])
    sums.add(make_row([1, 2], [0, 0], ["a", "b"]))
    assert sums.learned_images == 0
    with pytest.raises(AssertionError, match="judged twice, among them 2"):
        sums.add(make_row([2], [0], ["a"]))
