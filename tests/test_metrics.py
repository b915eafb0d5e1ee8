"""Test counts and accuracies against those of scikit-learn, for all images at once and summed over parts."""

from functools import reduce
from operator import add

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from ka_ray.metrics import Counts, Gated, compute_accuracies, count_batch
from ka_ray.sparse_counts import confusion

COLUMNS = [[0, 1, 2], [3, 4, 5, 6]]
TEACHERS = ["low", "high"]
NUM_CLASSES, NUM_IMAGES = 7, 90


def make_random_scores(known: bool = True) -> dict[str, np.ndarray]:
    """Return random scores that are right more often than not.

    Args:
        known: Whether the images have labels; the targets are -1 if not.
    """
    rng = np.random.default_rng(0)
    targets = rng.integers(0, NUM_CLASSES, NUM_IMAGES)
    signal = 1.5 * np.eye(NUM_CLASSES)[targets]
    return {
        "targets": targets if known else np.full(NUM_IMAGES, -1),
        "student": signal + rng.normal(size=(NUM_IMAGES, NUM_CLASSES)),
        "ensemble": signal + rng.normal(size=(NUM_IMAGES, NUM_CLASSES)),
    }


def count_part(data: dict[str, np.ndarray], part: slice = slice(None)) -> Counts:
    ensemble = data["ensemble"][part]
    own = [ensemble[:, columns] for columns in COLUMNS]
    return count_batch(data["targets"][part], data["student"][part], ensemble, own, COLUMNS)


def test_confusion_matrices_equal_those_of_scikit_learn():
    data = make_random_scores()
    counts = count_part(data)
    for name in ("student", "ensemble"):
        expected = confusion_matrix(data["targets"], data[name].argmax(1), labels=range(NUM_CLASSES))
        np.testing.assert_array_equal(getattr(counts, name).to_dense(), expected)


def test_accuracies_equal_those_of_scikit_learn():
    data = make_random_scores()
    report = compute_accuracies(count_part(data), TEACHERS)
    predicted = {name: data[name].argmax(1) for name in ("student", "ensemble")}
    assert report["union"] == pytest.approx(accuracy_score(data["targets"], predicted["student"]))
    assert report["ensemble"] == pytest.approx(accuracy_score(data["targets"], predicted["ensemble"]))
    assert report["agreement"] == pytest.approx(accuracy_score(predicted["ensemble"], predicted["student"]))
    assert report["images"] == report["labelled"] == NUM_IMAGES


@pytest.mark.parametrize("teacher", [0, 1])
def test_per_teacher_accuracy_is_measured_among_its_classes_on_its_images(teacher):
    data = make_random_scores()
    columns = COLUMNS[teacher]
    own_images = np.isin(data["targets"], columns)
    local = [columns.index(target) for target in data["targets"][own_images]]
    report = compute_accuracies(count_part(data), TEACHERS)["per_teacher"][TEACHERS[teacher]]
    for who, scores in (("teacher", data["ensemble"]), ("student", data["student"])):
        predicted = scores[own_images][:, columns].argmax(1)
        assert report[who] == pytest.approx(accuracy_score(local, predicted))


def test_the_classes_of_a_teacher_may_be_in_any_order():
    data = make_random_scores()
    columns = [[4, 0, 2], [6, 1, 5, 3]]
    own = [data["ensemble"][:, c] for c in columns]
    counts = count_batch(data["targets"], data["student"], data["ensemble"], own, columns)
    for i, own_classes in enumerate(columns):
        images = np.isin(data["targets"], own_classes)
        predicted = np.array(own_classes)[data["student"][images][:, own_classes].argmax(1)]
        assert counts.student_correct[i] == (predicted == data["targets"][images]).sum()


@pytest.mark.parametrize("size", [1, 7, NUM_IMAGES])
def test_counts_of_parts_add_up_to_those_of_all_images(size):
    data = make_random_scores()
    parts = [count_part(data, slice(i, i + size)) for i in range(0, NUM_IMAGES, size)]
    total = reduce(add, parts, Counts.zeros(NUM_CLASSES, len(TEACHERS)))
    assert compute_accuracies(total, TEACHERS) == compute_accuracies(count_part(data), TEACHERS)
    assert total.student == count_part(data).student


def test_without_labels_only_agreement_is_measured():
    data = make_random_scores(known=False)
    report = compute_accuracies(count_part(data), TEACHERS)
    expected = accuracy_score(data["ensemble"].argmax(1), data["student"].argmax(1))
    assert report["agreement"] == pytest.approx(expected)
    assert report["union"] is None
    assert report["ensemble"] is None
    assert report["per_teacher"] == {name: {"teacher": None, "student": None} for name in TEACHERS}
    assert (report["images"], report["labelled"]) == (NUM_IMAGES, 0)


def test_images_without_a_label_are_left_out():
    data = make_random_scores()
    data["targets"] = data["targets"].copy()
    data["targets"][::3] = -1
    known = data["targets"] >= 0
    report = compute_accuracies(count_part(data), TEACHERS)
    expected = accuracy_score(data["targets"][known], data["student"][known].argmax(1))
    assert report["union"] == pytest.approx(expected)
    assert report["labelled"] == known.sum()


def test_without_teachers_only_the_student_is_measured():
    data = make_random_scores()
    report = compute_accuracies(count_batch(data["targets"], data["student"], None, [], COLUMNS), TEACHERS)
    assert report["union"] == pytest.approx(accuracy_score(data["targets"], data["student"].argmax(1)))
    assert report["ensemble"] is None
    assert report["agreement"] is None
    assert all(part["teacher"] is None for part in report["per_teacher"].values())
    assert all(part["student"] is not None for part in report["per_teacher"].values())


def test_without_a_student_only_the_teachers_are_measured():
    data = make_random_scores()
    own = [data["ensemble"][:, columns] for columns in COLUMNS]
    report = compute_accuracies(count_batch(data["targets"], None, data["ensemble"], own, COLUMNS), TEACHERS)
    assert report["ensemble"] == pytest.approx(accuracy_score(data["targets"], data["ensemble"].argmax(1)))
    assert report["union"] is None
    assert report["agreement"] is None
    assert all(part["student"] is None for part in report["per_teacher"].values())


def test_counts_of_no_images_give_no_accuracies():
    report = compute_accuracies(Counts.zeros(NUM_CLASSES, len(TEACHERS)), TEACHERS)
    assert report["union"] is None
    assert report["images"] == 0


def test_a_class_that_is_never_predicted_keeps_its_row_and_column():
    predicted = np.eye(4)[[0, 2, 2, 1]]
    table = confusion(np.array([0, 0, 2, -1]), predicted, 4)
    assert table.to_dense().tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_confusion_without_scores_is_zero():
    assert confusion(np.array([0, 2, -1]), None, 3).to_dense().tolist() == [[0] * 3] * 3


def test_the_ensemble_over_views_is_counted_separately():
    data = make_random_scores()
    data["targets"] = np.where(np.arange(NUM_IMAGES) % 4, data["targets"], -1)
    known = data["targets"] >= 0
    over_views = np.random.default_rng(1).normal(size=(NUM_IMAGES, NUM_CLASSES))
    own = [data["ensemble"][:, columns] for columns in COLUMNS]
    inputs = (data["targets"], data["student"], data["ensemble"])
    counts = count_batch(*inputs, own, COLUMNS, over_views=over_views)
    expected = confusion_matrix(
        data["targets"][known], over_views[known].argmax(1), labels=range(NUM_CLASSES)
    )
    np.testing.assert_array_equal(counts.over_views.to_dense(), expected)
    report = compute_accuracies(counts, TEACHERS)
    assert report["ensemble_over_views"] == pytest.approx(np.trace(expected) / known.sum())
    without = compute_accuracies(count_batch(*inputs, own, COLUMNS), TEACHERS)
    assert without["ensemble_over_views"] is None
    assert report == without | {"ensemble_over_views": report["ensemble_over_views"]}


def test_counts_over_views_of_parts_add_up_to_those_of_all_images():
    data = make_random_scores()
    over_views = data["student"][::-1].copy()
    first, second = (
        count_batch(data["targets"][part], None, data["ensemble"][part], [], COLUMNS, over_views[part])
        for part in (slice(0, 40), slice(40, NUM_IMAGES))
    )
    expected = confusion_matrix(data["targets"], over_views.argmax(1), labels=range(NUM_CLASSES))
    np.testing.assert_array_equal((first + second).over_views.to_dense(), expected)


def test_accuracies_of_teachers_that_share_classes_equal_those_of_a_loop():
    data = make_random_scores()
    columns = [[0, 1, 2, 3], [6, 3, 2, 4, 5]]
    rng = np.random.default_rng(2)
    own = [rng.normal(size=(NUM_IMAGES, len(c))) for c in columns]
    report = compute_accuracies(
        count_batch(data["targets"], data["student"], data["ensemble"], own, columns), TEACHERS
    )
    for i, own_classes in enumerate(columns):
        images = [image for image in range(NUM_IMAGES) if data["targets"][image] in own_classes]
        num_correct = sum(own_classes[own[i][image].argmax()] == data["targets"][image] for image in images)
        assert report["per_teacher"][TEACHERS[i]]["teacher"] == pytest.approx(num_correct / len(images))


@pytest.mark.parametrize("known", [True, False])
def test_gated_counts_equal_those_of_a_loop(known):
    data, rng = make_random_scores(known), np.random.default_rng(1)
    gated_scores = data["ensemble"] + rng.normal(size=data["ensemble"].shape)
    before, owners = rng.integers(0, 2, (2, NUM_IMAGES))
    own = [data["ensemble"][:, columns] for columns in COLUMNS]
    parts = [
        count_batch(
            data["targets"][part],
            data["student"][part],
            data["ensemble"][part],
            [scores[part] for scores in own],
            COLUMNS,
            gated=Gated(gated_scores[part], before[part], owners[part]),
        )
        for part in (slice(0, 40), slice(40, None))
    ]
    report = compute_accuracies(parts[0] + parts[1], TEACHERS)
    predicted, found = gated_scores.argmax(1), report["gate"]
    assert report["agreement"] == pytest.approx(np.mean(predicted == data["student"].argmax(1)))
    assert found["changed"] == pytest.approx(np.mean(before != owners))
    if not known:
        assert {name for name, value in found.items() if value is None} == found.keys() - {"changed"}
        return
    right = {"owner_accuracy": 0, "ungated_owner_accuracy": 0, "oracle": 0}
    for image, target in enumerate(data["targets"]):
        owner = 0 if target in COLUMNS[0] else 1
        right["owner_accuracy"] += owners[image] == owner
        right["ungated_owner_accuracy"] += before[image] == owner
        right["oracle"] += COLUMNS[owner][own[owner][image].argmax()] == target
    assert {name: found[name] * NUM_IMAGES for name in right} == pytest.approx(right)
    assert found["ensemble"] == pytest.approx(accuracy_score(data["targets"], predicted))


def test_without_a_gate_nothing_is_said_of_owners():
    assert compute_accuracies(count_part(make_random_scores()), TEACHERS)["gate"] is None
