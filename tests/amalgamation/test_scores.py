"""Label sets: whose class stands where."""

import pytest
import torch

from ka_ray.amalgamation.scores import LabelSets
from ka_ray.errors import InputError

SETS = {"low": ("zero", "one"), "high": ("nine",), "odd": ("three", "five", "seven")}


def test_the_union_is_teacher_after_teacher():
    assert LabelSets(SETS).classes == ("zero", "one", "nine", "three", "five", "seven")


@pytest.mark.parametrize(("teacher", "columns"), [("low", [0, 1]), ("high", [2]), ("odd", [3, 4, 5])])
def test_columns_say_where_a_teachers_classes_stand(teacher, columns):
    assert LabelSets(SETS).columns(teacher) == columns


def test_amalgamated_scores_hold_each_teachers_in_its_columns():
    label_sets = LabelSets(SETS)
    scores = [torch.randn(7, len(classes)) for classes in SETS.values()]
    amalgamated = label_sets.amalgamate(scores)
    assert amalgamated.shape == (7, 6)
    for teacher, own in zip(SETS, scores, strict=True):
        assert torch.equal(amalgamated[:, label_sets.columns(teacher)], own)


def test_a_class_of_two_teachers_is_refused_by_name():
    with pytest.raises(InputError, match="'low' and 'odd' both name the class 'one'"):
        LabelSets({**SETS, "odd": ("three", "one")})
