"""Test the judge of a gate that teaches itself."""

import pytest
import torch

from ka_ray.gates.judge import area_under_curve, judge_self_gate, mark_ends


def test_the_area_under_the_curve_counts_pairs():
    values = torch.tensor([0.1, 0.4, 0.4, 0.8, 0.2])
    positive = torch.tensor([False, True, False, True, False])
    pairs = [(p, q) for p in values[positive].tolist() for q in values[~positive].tolist()]
    expected = sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs)
    assert area_under_curve(values, positive) == pytest.approx(expected)


def test_the_ends_are_the_smallest_and_the_largest_values():
    marks = mark_ends(torch.arange(10.0).flip(0))
    assert marks.tolist() == [1, 1, -1, -1, -1, -1, -1, -1, 0, 0]


@pytest.mark.parametrize("teachers", [2, 3])
def test_telling_features_are_judged_to_help(world, teachers):
    sample, _, label_sets = world(3000, teachers, separation=4.0, loudness=1.5)
    judgement = judge_self_gate(sample, label_sets)
    assert judgement.helps
    assert judgement.gain > 0.02


def test_features_of_noise_are_judged_to_do_harm(world):
    sample, _, label_sets = world(3000, separation=0.0, loudness=1.5)
    judgement = judge_self_gate(sample, label_sets)
    assert not judgement.helps
    assert judgement.gain < 0.005
