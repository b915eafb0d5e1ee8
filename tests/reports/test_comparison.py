"""Test the comparison of methods against numbers computed by hand."""

from typing import Any

import numpy as np
import pytest

from ka_ray.metrics import Counts
from ka_ray.reports.comparison import Comparison, ComparisonRow, SeedValues, make_ensemble_rows, make_row
from ka_ray.sparse_counts import SparseCounts

TEACHERS = ["low", "high"]


def counts_of(num_correct: int, images: int = 10, **changes: Any) -> Counts:
    """Return the counts for images of class 0, of which a student predicts only the first ones correctly.

    Args:
        num_correct: Number of images for which the student predicts class 0, and not class 1.
        images: Number of images, all of class 0.
        changes: Fields of the counts that replace the default ones.
    """
    student = SparseCounts.from_dense([[num_correct, images - num_correct], [0, 0]])
    no_images = SparseCounts.zeros(2, 2)
    defaults = {
        "images": images,
        "agreed": num_correct // 2,
        "compared": images,
        "student": student,
        "ensemble": SparseCounts.from_dense([[8, 2], [0, 0]]),
        "over_views": no_images,
        "predicted": SparseCounts.from_dense([8, 2]),
        "teacher_images": np.array([4, 5]),
        "teacher_correct": np.array([3, 4]),
        "student_correct": np.array([num_correct // 2, 5]),
    }
    defaults |= {"gated": no_images, "owners": np.zeros(4, np.int64)}
    return Counts(**defaults | changes)


def make_comparison_row(label: str, **changes: Any) -> ComparisonRow:
    defaults = {
        "union": SeedValues(values=[0.5, 0.75]),
        "per_teacher": {name: SeedValues(values=[None]) for name in TEACHERS},
        "agreement": SeedValues(values=[1.0, 0.9]),
        "seconds": SeedValues(values=[10.0, 13.0]),
    }
    return ComparisonRow(**{"label": label, "images": 12345, "parameters": 6789} | defaults | changes)


@pytest.mark.parametrize(
    ("values", "mean", "deviation", "text"),
    [
        ([0.5, 0.75], 0.625, 0.125 * 2**0.5, ".625 ± .177"),
        ([0.5, None, 0.75], 0.625, 0.125 * 2**0.5, ".625 ± .177"),
        ([1.0, 1.0, 1.0], 1.0, 0.0, "1.000 ± .000"),
        ([0.1, 0.2, 0.6], 0.3, 0.07**0.5, ".300 ± .265"),
        ([0.25], 0.25, None, ".250"),
        ([0.25, None], 0.25, None, ".250"),
        ([0.0], 0.0, None, ".000"),
        ([None, None], None, None, "-"),
        ([], None, None, "-"),
        ([0.0, 2.0], 1.0, 2**0.5, "1.000 ± 1.414"),
    ],
)
def test_seed_values_have_the_mean_and_the_sample_deviation_of_the_measured_values(
    values, mean, deviation, text
):
    seed_values = SeedValues(values=values)
    assert seed_values.mean == (None if mean is None else pytest.approx(mean))
    assert seed_values.deviation == (None if deviation is None else pytest.approx(deviation))
    assert seed_values.format() == text


def test_a_row_has_one_value_per_seed():
    row = make_row("direct", [counts_of(6), counts_of(8)], TEACHERS, [1.5, 2.5], 300, 42)
    assert (row.label, row.images, row.parameters) == ("direct", 300, 42)
    assert row.union.values == pytest.approx([6 / 10, 8 / 10])
    assert row.agreement.values == pytest.approx([3 / 10, 4 / 10])
    assert row.per_teacher["low"].values == pytest.approx([3 / 4, 4 / 4])
    assert row.per_teacher["high"].values == pytest.approx([5 / 5, 5 / 5])
    assert row.seconds.values == [1.5, 2.5]
    assert row.seconds.mean == 2.0


def test_a_row_without_labels_has_only_agreement():
    no_labels = SparseCounts.zeros(2, 2)
    counts = counts_of(6, student=no_labels, ensemble=no_labels, teacher_images=np.zeros(2, np.int64))
    row = make_row("direct", [counts], TEACHERS, [None], 300, 42)
    assert row.union.values == [None]
    assert row.per_teacher == {name: SeedValues(values=[None]) for name in TEACHERS}
    assert row.agreement.values == [0.3]


def test_the_row_of_the_ensemble_has_the_accuracies_of_the_teachers():
    [row] = make_ensemble_rows({"mean": counts_of(6)}, TEACHERS, 99)
    assert row.label == "ensemble"
    assert row.union.values == [8 / 10]
    assert {name: accuracy.values for name, accuracy in row.per_teacher.items()} == {
        "low": [3 / 4],
        "high": [4 / 5],
    }
    assert (row.agreement.mean, row.seconds.mean, row.images, row.parameters) == (None, None, 0, 99)


def test_every_rule_has_its_own_ensemble_row():
    by_rule = {
        "mean": counts_of(6),
        "max": counts_of(6, ensemble=SparseCounts.from_dense([[9, 1], [0, 0]])),
    }
    rows = make_ensemble_rows(by_rule, TEACHERS, 99)
    assert {row.label: row.union.values for row in rows} == {
        "ensemble (mean)": [8 / 10],
        "ensemble (max)": [9 / 10],
    }


def test_the_ensemble_over_views_has_an_additional_row():
    over_views = SparseCounts.from_dense([[7, 3], [0, 0]])
    with_views, without = counts_of(6, over_views=over_views), counts_of(6)
    rows = make_ensemble_rows({"mean": with_views, "max": without}, TEACHERS, 99)
    labels = ["ensemble (mean)", "ensemble (mean), over views", "ensemble (max)"]
    assert [row.label for row in rows] == labels
    assert rows[1].union.values == [7 / 10]
    assert rows[1].per_teacher == {name: SeedValues(values=[None]) for name in TEACHERS}
    assert (rows[1].agreement.mean, rows[1].images, rows[1].parameters) == (None, 0, 99)
    [_, over_views_row] = make_ensemble_rows({"mean": with_views}, TEACHERS, 99)
    assert over_views_row.label == "ensemble, over views"


def make_comparison(**changes: Any) -> Comparison:
    per_teacher = {"low": SeedValues(values=[0.9, 0.8]), "high": SeedValues(values=[None, None])}
    teachers = {"seconds": SeedValues(values=[None]), "agreement": SeedValues(values=[None]), "images": 0}
    rows = [
        make_comparison_row("ensemble", union=SeedValues(values=[0.76]), **teachers),
        make_comparison_row("direct scores.rule=mean|max", per_teacher=per_teacher),
    ]
    return Comparison(**{"name": "pets", "seeds": [3, 4], "rows": rows, "shared_seconds": 59.6} | changes)


def test_the_table_has_one_line_per_method():
    text = make_comparison().to_markdown()
    assert text.startswith("# pets: comparison of methods\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.replace(r"\|", "/").strip("|").split("|")] for line in lines]
    assert cells[0] == [
        *("method", "accuracy, all classes", "accuracy, classes of low", "accuracy, classes of high"),
        *("agreement with the ensemble", "seconds", "images processed", "parameters"),
    ]
    assert all(len(line) == len(cells[0]) for line in cells)
    assert cells[2:] == [
        ["ensemble", ".760", "-", "-", "-", "-", "-", "6,789"],
        [
            *("direct scores.rule=mean/max", ".625 ± .177", ".850 ± .071", "-", ".950 ± .071"),
            *("12 ± 2", "12,345", "6,789"),
        ],
    ]
    assert "Seeds: 3, 4; values are mean ± standard deviation. " in text
    assert "Reading the images and running the teachers took 60 s once." in text


def test_the_table_of_one_seed_does_not_mention_deviations():
    text = make_comparison(seeds=[3]).to_markdown()
    assert "Seeds: 3. " in text
    assert "deviation" not in text


def test_a_saved_comparison_is_loaded_unchanged(tmp_path):
    saved = make_comparison()
    saved.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"compare.md", "compare.json"}
    assert (tmp_path / "compare.md").read_text() == saved.to_markdown()
    assert Comparison.model_validate_json((tmp_path / "compare.json").read_text()) == saved


def test_row_returns_the_row_of_a_label():
    assert make_comparison().row("ensemble").union.values == [0.76]
    with pytest.raises(KeyError, match="unknown"):
        make_comparison().row("unknown")
