"""Test scores that are combined by the probability of each owner, against loops over images and classes."""

import math

import torch

from ka_ray.amalgamation.gated_scores import amalgamate_by_owner, compute_energies
from ka_ray.amalgamation.label_sets import LabelSets

DISJOINT = LabelSets({"pets": ("cat", "dog"), "farm": ("cow", "pig", "hen")})
OVERLAPPING = LabelSets({"pets": ("cat", "dog"), "wild": ("wolf", "dog", "lynx")})


def test_energies_as_owners_give_the_softmax_over_concatenated_scores():
    scores = torch.randn(7, 5, dtype=torch.float64)
    gated = amalgamate_by_owner(DISJOINT, scores, compute_energies(DISJOINT, scores).log_softmax(dim=1))
    assert torch.allclose(gated, scores.log_softmax(dim=1))


def test_a_sure_owner_decides_between_the_teachers():
    scores = torch.tensor([[9.0, 8.0, 1.0, 0.0, 2.0]])
    gated = amalgamate_by_owner(DISJOINT, scores, torch.tensor([[-20.0, 0.0]]))
    assert DISJOINT.classes[int(gated.argmax())] == "hen"


def test_a_shared_class_gets_probability_from_each_teacher_that_knows_it():
    scores = torch.randn(6, 5, dtype=torch.float64)
    log_owners = torch.randn(6, 2, dtype=torch.float64).log_softmax(dim=1)
    gated = amalgamate_by_owner(OVERLAPPING, scores, log_owners).exp()
    for image in range(6):
        expected = dict.fromkeys(OVERLAPPING.classes, 0.0)
        start = 0
        for teacher, classes in enumerate(OVERLAPPING.by_teacher.values()):
            own = scores[image, start : start + len(classes)].tolist()
            total = sum(math.exp(score) for score in own)
            for name, score in zip(classes, own, strict=True):
                expected[name] += math.exp(float(log_owners[image, teacher]) + score) / total
            start += len(classes)
        for column, name in enumerate(OVERLAPPING.classes):
            assert math.isclose(float(gated[image, column]), expected[name], rel_tol=1e-9)
    assert torch.allclose(gated.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_energies_follow_the_centring_of_the_scores():
    scores = torch.tensor([[101.0, 99.0, 0.0, 0.0, 0.0]])
    centred = LabelSets(DISJOINT.by_teacher, center=True)
    assert compute_energies(DISJOINT, scores).argmax() == 0
    expected = torch.tensor([[math.log(math.e + 1 / math.e), math.log(3)]])
    assert torch.allclose(compute_energies(centred, scores), expected)


def test_scores_that_are_stored_in_half_precision_lose_nothing_more():
    scores, log_owners = torch.randn(50, 5).half(), torch.randn(50, 2).log_softmax(1)
    found = amalgamate_by_owner(OVERLAPPING, scores, log_owners)
    assert found.dtype == torch.float32
    exact = amalgamate_by_owner(OVERLAPPING, scores.double(), log_owners.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
