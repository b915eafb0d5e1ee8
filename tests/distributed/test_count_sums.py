"""Test what the driver adds up of an evaluation, without Ray."""

import pickle
from collections import Counter

import numpy as np
import pytest

from ka_ray.amalgamation import LabelSets
from ka_ray.disputes import MAX_DISPUTES, Dispute
from ka_ray.distributed.count_sums import CountSums
from ka_ray.metrics import Counts

LABEL_SETS = LabelSets({"low": ("a", "b")})


def make_dispute(image_id):
    """Return a dispute about which both are the surer the larger the id is."""
    sure = image_id / 1000
    return Dispute(image_id, "a", "a", sure, "b", 1.0, b"")


def make_row(ids, digests, labels):
    return {
        "counts": pickle.dumps({"student": Counts.zeros(2, 1)}),
        "image_ids": np.array(ids),
        "digests": np.array(digests, np.int64),
        "labels": pickle.dumps(Counter(labels)),
        "disputes": pickle.dumps([make_dispute(image_id) for image_id in ids]),
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
    assert [dispute.image_id for dispute in sums.disputes] == [*range(319, 319 - MAX_DISPUTES, -1)]


def test_an_image_that_comes_twice_is_an_error():
    sums = CountSums(LABEL_SETS, ["student"])
    sums.add(make_row([1, 2], [0, 0], ["a", "b"]))
    assert sums.learned_images == 0
    with pytest.raises(AssertionError, match="judged twice, among them 2"):
        sums.add(make_row([2], [0], ["a"]))
