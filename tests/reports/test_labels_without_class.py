"""Labels that are no classes are named and counted wherever accuracies are shown."""

from typing import Any

import pytest

from ka_ray.errors import InputError
from ka_ray.metrics import Counts
from ka_ray.reports.accuracy import measure_accuracy, with_labels
from ka_ray.reports.comparison import Comparison, SeedValues, make_row
from ka_ray.reports.labels import LabelMatch, describe_unmatched, match_labels, require_match
from ka_ray.reports.markdown import _accuracy_section
from ka_ray.reports.sections import Accuracy
from ka_ray.reports.warnings import list_warnings
from ka_ray.terminal.results import describe_teacher
from ka_ray.terminal.summary import show_accuracy

CLASSES = ["cat", "dog", "fish", "horse"]
LABELS = {"cat": 250, "Dog": 60, "hourse": 57, "fish": 233, "truck": 3, "": 7}
"""Two folders are renamed, one was never a class, and seven images have no label."""


def make_accuracy(labels: dict[str, int], **changes: Any) -> Accuracy:
    accuracy = measure_accuracy(Counts.zeros(4, 1), ["a"]).model_copy(update={"images": sum(labels.values())})
    matched = sum(count for label, count in labels.items() if label in CLASSES)
    return with_labels(accuracy.model_copy(update={"labelled": matched, **changes}), labels, CLASSES)


def test_labels_are_matched_by_their_exact_name() -> None:
    assert match_labels(LABELS, CLASSES) == LabelMatch(
        images=610, matched=483, unmatched={"Dog": 60, "hourse": 57, "truck": 3}, missing=["dog", "horse"]
    )


def test_the_description_counts_names_and_guesses() -> None:
    assert describe_unmatched(match_labels(LABELS, CLASSES), "the student") == (
        "120 of 610 images are left out, because their labels are no classes of the student: 'Dog' (60; is "
        "it 'dog'?), 'hourse' (57; is it 'horse'?), 'truck' (3). No image is labelled 'dog', 'horse'."
    )


def test_nothing_is_said_where_every_label_is_a_class() -> None:
    assert describe_unmatched(match_labels({"cat": 3, "": 2}, CLASSES), "the student") == ""


def test_of_many_labels_the_most_frequent_are_named() -> None:
    labels = {f"folder_{i}": i for i in range(1, 1001)}
    text = describe_unmatched(match_labels(labels, [f"class_{i}" for i in range(1000)]), "the student")
    assert "500,500 of 500,500 images" in text
    assert "'folder_1000' (1,000), 'folder_999' (999)" in text
    assert "and 990 more labels. No image is labelled 'class_0', 'class_1'" in text
    assert text.endswith("'class_9' and 990 more.")


def test_images_of_which_no_label_is_a_class_are_refused() -> None:
    match = match_labels({"Cat": 3, "0": 2}, CLASSES)
    with pytest.raises(
        InputError,
        match=r"none of the labels of 5 images is a class of the student: the labels are 'Cat', '0'; the clas"
        r"ses are 'cat', 'dog', 'fish', 'horse'\. .* must be spelled like the classes; ask a colleague$",
    ):
        require_match(match, CLASSES, "the student", "ask a colleague")
    require_match(match_labels({"Cat": 3, "cat": 1}, CLASSES), CLASSES, "the student", "")
    require_match(match_labels({"": 3}, CLASSES), CLASSES, "the student", "")  # unlabelled is not misspelled


def test_the_report_warns_first_of_what_its_accuracies_leave_out() -> None:
    warnings = list_warnings(make_accuracy(LABELS), {}, {}, {}, True)
    assert warnings[0].startswith("Accuracies are those of 483 of 610 images. 120 of 610 images are left out")
    assert list_warnings(make_accuracy({"cat": 5}), {}, {}, {}, True) == []
    text = _accuracy_section(make_accuracy(LABELS))
    assert "Measured on 483 labelled images out of 610. Left out are 120 images whose labels are no" in text
    assert make_accuracy(LABELS).missing == ["dog", "horse"]
    assert make_accuracy({"": 5}).missing == []  # without labels, no class is missed


def test_a_report_of_an_earlier_version_has_no_labels_left_out() -> None:
    content = make_accuracy(LABELS).model_dump()
    del content["unmatched"], content["missing"]
    assert Accuracy.model_validate(content).unmatched == {}


def test_the_terminal_shows_the_warning_above_the_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    show_accuracy(make_accuracy(LABELS, union=0.95))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: Accuracies are those of 483 of 610 images.")
    assert lines[1] == "union 95.0 % on 483 labelled images, of 610 images"
    show_accuracy(make_accuracy({"cat": 600}, union=0.917))
    assert capsys.readouterr().out.splitlines()[0] == "union 91.7 % on 600 labelled images"


def test_the_terminal_says_what_the_accuracy_of_a_teacher_leaves_out() -> None:
    others = "teacher a: accuracy 50.0 % on 40 images; left out are 60 images of other classes"
    assert describe_teacher("a", 0.5, 40, 60) == others
    assert describe_teacher("a", 0.5, 40, 0) == "teacher a: accuracy 50.0 % on 40 images"


def test_a_comparison_warns_above_its_table() -> None:
    row = make_row("direct", [Counts.zeros(4, 1)], ["a"], [1.0], 5, 6)
    comparison = Comparison(name="run", seeds=[0], rows=[row], shared_seconds=1)
    assert comparison.to_markdown().startswith("# run")
    warned = comparison.model_copy(update={"warnings": ["120 of 610 images are left out."]})
    assert warned.to_markdown().startswith("> **Warning:** 120 of 610 images are left out.\n\n# run")
    assert row.union == SeedValues(values=[None])
    named = comparison.model_copy(update={"warnings": ["left out: <img src=x>"]})
    assert r"\<img src=x\>" in named.to_markdown()
