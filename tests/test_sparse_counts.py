"""Test sparse counts against dense ones, and the evaluation of 10,000 classes."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from ka_ray.amalgamation import LabelSets
from ka_ray.config import ImagesConfig, Resources, TeacherConfig
from ka_ray.distributed.evaluator import TEACHERS_ONLY, Evaluation, Evaluator
from ka_ray.images import Source
from ka_ray.images.split import ImageSet
from ka_ray.metrics import Counts, compute_accuracies
from ka_ray.reports.figures import draw_confusion_matrix
from ka_ray.reports.summaries import Confusion, EvaluationSummary
from ka_ray.sparse_counts import SparseCounts

MANY, BATCH = 10_000, 64
"""Number of classes, and of images in a batch."""


@pytest.mark.parametrize("shape", [(5,), (4, 4)])
def test_sparse_counts_equal_dense_ones(shape):
    rng = np.random.default_rng(0)
    parts = [[rng.integers(0, size, 30) for size in shape] for _ in range(3)]
    expected = np.zeros(shape, int)
    for indices in parts:
        np.add.at(expected, tuple(indices), 1)
    total = SparseCounts.sum([SparseCounts.of(shape, *indices) for indices in parts])
    np.testing.assert_array_equal(total.to_dense(), expected)
    assert total == SparseCounts.from_dense(expected)
    assert total == SparseCounts.of(shape, *parts[0]) + SparseCounts.from_dense(
        sum(SparseCounts.of(shape, *indices).to_dense() for indices in parts[1:])
    )
    assert total != SparseCounts.zeros(*shape)
    assert (total.total, total.largest) == (90, expected.max())
    if len(shape) == 2:
        assert total.diagonal == np.trace(expected)


def test_no_images_are_zero_everywhere():
    none = SparseCounts.zeros(3, 3)
    assert (none.total, none.diagonal, none.largest) == (0, 0, 0)
    assert none + none == none
    assert not none.to_dense().any()


def test_counts_of_other_shapes_are_not_added():
    with pytest.raises(ValueError, match="cannot be added"):
        SparseCounts.zeros(3) + SparseCounts.zeros(4)


def test_indices_may_be_drawn_in_groups():
    dense = np.arange(25).reshape(5, 5)
    grouped = SparseCounts.from_dense(dense).to_dense(group=2)
    expected = [[dense[r : r + 2, c : c + 2].sum() for c in (0, 2, 4)] for r in (0, 2, 4)]
    assert grouped.tolist() == expected


def test_a_batch_of_ten_thousand_classes_ships_only_what_it_counts():
    names = [f"class {i}" for i in range(MANY)]
    by_teacher = {"low": names[: MANY // 2], "high": names[MANY // 2 :]}
    config = TypeAdapter(ImagesConfig).validate_python({"source": "digits"})
    images = ImageSet(config, Source([], lambda *_: None), np.zeros(0, np.int64))
    # Only the names of the teachers matter here.
    teachers = [TeacherConfig.model_construct(name=name) for name in by_teacher]
    evaluator = Evaluator(Evaluation(images, LabelSets(by_teacher), teachers, {}), Resources(cpu=1))
    rng = np.random.default_rng(0)
    true = rng.integers(0, MANY, BATCH)
    scores = rng.normal(size=(BATCH, MANY)).astype(np.float32)
    scores[np.arange(BATCH // 2), true[: BATCH // 2]] += 100  # half of the images are predicted correctly
    batch = {
        "image_id": np.arange(BATCH),
        "image": np.zeros((BATCH, 3, 8, 8), np.uint8),
        "label": np.array(names)[true],
        "scores@low": scores[:, : MANY // 2],
        "scores@high": scores[:, MANY // 2 :],
    }
    tracemalloc.start()
    (shipped,) = evaluator(batch)["counts"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A dense confusion matrix of this size takes 800 MB.
    assert len(shipped) < 16_000
    assert peak < 40e6
    counts: Counts = pickle.loads(shipped)[TEACHERS_ONLY]
    predicted = scores.argmax(1)
    assert sorted(zip(*(i.tolist() for i in counts.ensemble.indices), strict=True)) == sorted(
        set(zip(true.tolist(), predicted.tolist(), strict=True))
    )
    accuracy = compute_accuracies(counts, [*by_teacher])
    assert accuracy["ensemble"] == pytest.approx((predicted == true).mean())
    assert accuracy["labelled"] == BATCH


def test_ten_thousand_classes_are_stored_and_drawn(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.integers(0, MANY, 50_000)
    wrong = rng.random(len(true)) < 0.2
    counts = SparseCounts.of((MANY, MANY), true, np.where(wrong, rng.integers(0, MANY, len(true)), true))
    stored = Confusion.of(counts).model_dump_json()
    assert len(stored) < 20 * len(true)
    assert Confusion.model_validate_json(stored).to_counts(MANY) == counts
    tracemalloc.start()
    (path,) = draw_confusion_matrix(counts, [f"class {i}" for i in range(MANY)], tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 400e6  # the dense matrix alone takes 800 MB
    tracemalloc.stop()
    with Image.open(path) as image:
        assert max(image.size) < 3000


def test_a_dense_matrix_of_an_earlier_version_is_read(tmp_path):
    dense = [[3, 1], [0, 2]]
    accuracy = compute_accuracies(Counts.zeros(2, 1), ["one"])
    content = {
        "images": 6,
        "seconds": 1,
        "unreadable": [],
        "placements": [],
        "curve": [],
        "accuracy": accuracy,
    }
    path = tmp_path / "evaluate.json"
    path.write_text(json.dumps(content | {"confusion": dense}))
    found = EvaluationSummary.load(path)
    assert found.confusion.to_counts(2).to_dense().tolist() == dense
    found.save(path)
    assert EvaluationSummary.load(path) == found
