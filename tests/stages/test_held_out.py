"""Test how students are judged without labels: by the teacher that they follow worst."""

import pytest
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.stages.held_out import Quality, measure_quality
from ka_ray.training.batches import Batches

LABEL_SETS = LabelSets({"quiet": ("a", "b"), "loud": ("c", "d")})


def judge(make_store, scores):
    """Judge a student that gives these scores, beside a loud teacher whose scores are always higher."""
    generator = torch.Generator().manual_seed(0)
    teachers = torch.randn(64, 4, generator=generator) + torch.tensor([0.0, 0.0, 5.0, 5.0])
    store = make_store({
        "image_id": torch.arange(64).numpy(),
        "image": torch.arange(64, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).numpy(),
        "scores": teachers.numpy(),
    })  # fmt: skip
    held_out = Batches(store, ["image", "scores"], 10, seed=0)
    return measure_quality(lambda images: scores(teachers)[images[:, 0, 0, 0].long()], held_out, LABEL_SETS)


def test_a_student_that_follows_only_the_loud_teacher_is_worse_than_one_that_follows_both(make_store):
    forgot_the_quiet_one = judge(make_store, lambda teachers: teachers * torch.tensor([0.0, 0.0, 1.0, 1.0]))
    follows_both = judge(make_store, lambda teachers: 0.8 * teachers - torch.tensor([0.0, 0.0, 5.0, 5.0]))
    assert forgot_the_quiet_one.agreement > follows_both.agreement
    assert follows_both.is_better_than(forgot_the_quiet_one)


def test_the_ensemble_itself_has_no_divergence(make_store):
    quality = judge(make_store, lambda teachers: teachers)
    assert quality.agreement == 1
    assert quality.divergence == pytest.approx(0, abs=1e-6)
    assert quality.worst_divergence == pytest.approx(0, abs=1e-6)
    assert quality.images == 64


def test_the_ensemble_decides_between_students_that_follow_the_teachers_equally():
    far, near = Quality(0.5, 2.0, 0.501, 10), Quality(0.5, 1.0, 0.504, 10)
    assert near.is_better_than(far)
    assert not far.is_better_than(near)


def test_of_students_that_both_equal_the_ensemble_rounding_errors_do_not_choose():
    one, other = Quality(1.0, -5.4e-9, -5.43e-9, 10), Quality(1.0, -6.1e-9, 2e-9, 10)
    for first, second in ((one, other), (other, one)):
        assert not first.is_better_than(second)
        assert not first.is_closer_than(second)


def test_of_epochs_the_one_closest_to_the_ensemble_is_better_whatever_a_single_teacher_loses():
    start, last = Quality(0.64, 1.155, 0.626, 300), Quality(0.72, 0.877, 0.701, 300)
    assert last.is_closer_than(start)
    assert not start.is_closer_than(last)
    assert start.is_better_than(last)


def test_scores_that_are_not_finite_lose_against_all_others():
    broken, bad = Quality(0.9, float("nan"), float("nan"), 10), Quality(0.1, 9.0, 9.0, 10)
    assert bad.is_better_than(broken)
    assert not broken.is_better_than(bad)
    assert bad.is_closer_than(broken)
    assert not broken.is_closer_than(bad)
