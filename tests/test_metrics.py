"""Counts and accuracies against scikit-learn, whole and in parts."""

from functools import reduce
from operator import add

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from ka_ray.metrics import Counts, compute_accuracies, confusion, count_batch

COLUMNS = [[0, 1, 2], [3, 4, 5, 6]]
TEACHERS = ["low", "high"]
NUM_CLASSES, NUM_IMAGES = 7, 90


def scored(known: bool = True) -> dict[str, np.ndarray]:
    """Random scores that are right more often than not."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, NUM_CLASSES, NUM_IMAGES)
    hint = 1.5 * np.eye(NUM_CLASSES)[targets]
    return {
        "targets": targets if known else np.full(NUM_IMAGES, -1),
        "student": hint + rng.normal(size=(NUM_IMAGES, NUM_CLASSES)),
        "ensemble": hint + rng.normal(size=(NUM_IMAGES, NUM_CLASSES)),
    }


def counted(data: dict[str, np.ndarray], part: slice = slice(None)) -> Counts:
    ensemble = data["ensemble"][part]
    own = [ensemble[:, columns] for columns in COLUMNS]
    return count_batch(data["targets"][part], data["student"][part], ensemble, own, COLUMNS)


def test_confusions_are_those_of_scikit_learn():
    data = scored()
    counts = counted(data)
    for name in ("student", "ensemble"):
        expected = confusion_matrix(data["targets"], data[name].argmax(1), labels=range(NUM_CLASSES))
        np.testing.assert_array_equal(getattr(counts, name), expected)


def test_accuracies_are_those_of_scikit_learn():
    data = scored()
    report = compute_accuracies(counted(data), TEACHERS)
    said = {name: data[name].argmax(1) for name in ("student", "ensemble")}
    assert report["union"] == pytest.approx(accuracy_score(data["targets"], said["student"]))
    assert report["ensemble"] == pytest.approx(accuracy_score(data["targets"], said["ensemble"]))
    assert report["agreement"] == pytest.approx(accuracy_score(said["ensemble"], said["student"]))
    assert report["images"] == report["labelled"] == NUM_IMAGES


@pytest.mark.parametrize("teacher", [0, 1])
def test_a_teachers_accuracy_is_among_its_classes_on_its_images(teacher):
    data = scored()
    columns = COLUMNS[teacher]
    mine = np.isin(data["targets"], columns)
    local = [columns.index(target) for target in data["targets"][mine]]
    report = compute_accuracies(counted(data), TEACHERS)["per_teacher"][TEACHERS[teacher]]
    for who, scores in (("teacher", data["ensemble"]), ("student", data["student"])):
        said = scores[mine][:, columns].argmax(1)
        assert report[who] == pytest.approx(accuracy_score(local, said))


def test_columns_in_any_order():
    data = scored()
    columns = [[4, 0, 2], [6, 1, 5, 3]]
    own = [data["ensemble"][:, c] for c in columns]
    counts = count_batch(data["targets"], data["student"], data["ensemble"], own, columns)
    for i, mine in enumerate(columns):
        images = np.isin(data["targets"], mine)
        said = np.array(mine)[data["student"][images][:, mine].argmax(1)]
        assert counts.student_correct[i] == (said == data["targets"][images]).sum()


@pytest.mark.parametrize("size", [1, 7, NUM_IMAGES])
def test_counts_of_parts_add_up(size):
    data = scored()
    parts = [counted(data, slice(i, i + size)) for i in range(0, NUM_IMAGES, size)]
    total = reduce(add, parts, Counts.zeros(NUM_CLASSES, len(TEACHERS)))
    assert compute_accuracies(total, TEACHERS) == compute_accuracies(counted(data), TEACHERS)
    np.testing.assert_array_equal(total.student, counted(data).student)


def test_without_labels_agreement_alone_is_known():
    data = scored(known=False)
    report = compute_accuracies(counted(data), TEACHERS)
    expected = accuracy_score(data["ensemble"].argmax(1), data["student"].argmax(1))
    assert report["agreement"] == pytest.approx(expected)
    assert report["union"] is None
    assert report["ensemble"] is None
    assert report["per_teacher"] == {name: {"teacher": None, "student": None} for name in TEACHERS}
    assert (report["images"], report["labelled"]) == (NUM_IMAGES, 0)


def test_images_without_a_label_are_left_out():
    data = scored()
    data["targets"] = data["targets"].copy()
    data["targets"][::3] = -1
    known = data["targets"] >= 0
    report = compute_accuracies(counted(data), TEACHERS)
    expected = accuracy_score(data["targets"][known], data["student"][known].argmax(1))
    assert report["union"] == pytest.approx(expected)
    assert report["labelled"] == known.sum()


def test_without_teachers_the_student_is_judged_alone():
    data = scored()
    report = compute_accuracies(count_batch(data["targets"], data["student"], None, [], COLUMNS), TEACHERS)
    assert report["union"] == pytest.approx(accuracy_score(data["targets"], data["student"].argmax(1)))
    assert report["ensemble"] is None
    assert report["agreement"] is None
    assert all(part["teacher"] is None for part in report["per_teacher"].values())
    assert all(part["student"] is not None for part in report["per_teacher"].values())


def test_without_a_student_the_teachers_are_judged_alone():
    data = scored()
    own = [data["ensemble"][:, columns] for columns in COLUMNS]
    report = compute_accuracies(count_batch(data["targets"], None, data["ensemble"], own, COLUMNS), TEACHERS)
    assert report["ensemble"] == pytest.approx(accuracy_score(data["targets"], data["ensemble"].argmax(1)))
    assert report["union"] is None
    assert report["agreement"] is None
    assert all(part["student"] is None for part in report["per_teacher"].values())


def test_no_images_at_all():
    report = compute_accuracies(Counts.zeros(NUM_CLASSES, len(TEACHERS)), TEACHERS)
    assert report["union"] is None
    assert report["images"] == 0


def test_a_class_that_nobody_says_keeps_its_row_and_column():
    said = np.eye(4)[[0, 2, 2, 1]]
    table = confusion(np.array([0, 0, 2, -1]), said, 4)
    assert table.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_without_scores_there_is_no_confusion():
    assert confusion(np.array([0, 2, -1]), None, 3).tolist() == [[0] * 3] * 3


def test_the_ensemble_over_views_is_counted_beside_the_ensemble():
    data = scored()
    data["targets"] = np.where(np.arange(NUM_IMAGES) % 4, data["targets"], -1)
    known = data["targets"] >= 0
    over_views = np.random.default_rng(1).normal(size=(NUM_IMAGES, NUM_CLASSES))
    own = [data["ensemble"][:, columns] for columns in COLUMNS]
    one = (data["targets"], data["student"], data["ensemble"])
    counts = count_batch(*one, own, COLUMNS, over_views=over_views)
    expected = confusion_matrix(
        data["targets"][known], over_views[known].argmax(1), labels=range(NUM_CLASSES)
    )
    np.testing.assert_array_equal(counts.over_views, expected)
    report = compute_accuracies(counts, TEACHERS)
    assert report["ensemble_over_views"] == pytest.approx(np.trace(expected) / known.sum())
    without = compute_accuracies(count_batch(*one, own, COLUMNS), TEACHERS)
    assert without["ensemble_over_views"] is None
    assert report == without | {"ensemble_over_views": report["ensemble_over_views"]}


def test_counts_over_views_of_parts_add_up():
    data = scored()
    over_views = data["student"][::-1].copy()
    first, second = (
        count_batch(data["targets"][part], None, data["ensemble"][part], [], COLUMNS, over_views[part])
        for part in (slice(0, 40), slice(40, NUM_IMAGES))
    )
    expected = confusion_matrix(data["targets"], over_views.argmax(1), labels=range(NUM_CLASSES))
    np.testing.assert_array_equal((first + second).over_views, expected)


def test_teachers_may_share_classes():
    data = scored()
    columns = [[0, 1, 2, 3], [6, 3, 2, 4, 5]]
    rng = np.random.default_rng(2)
    own = [rng.normal(size=(NUM_IMAGES, len(c))) for c in columns]
    report = compute_accuracies(
        count_batch(data["targets"], data["student"], data["ensemble"], own, columns), TEACHERS
    )
    for i, mine in enumerate(columns):
        images = [image for image in range(NUM_IMAGES) if data["targets"][image] in mine]
        right = sum(mine[own[i][image].argmax()] == data["targets"][image] for image in images)
        assert report["per_teacher"][TEACHERS[i]]["teacher"] == pytest.approx(right / len(images))
