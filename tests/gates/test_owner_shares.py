"""Test images of nobody, and shares of owners."""

import dataclasses

import pytest
import torch

from ka_ray.gates.cross_validation import choose_gate
from ka_ray.gates.fit import GateProblem
from ka_ray.gates.gate import Gate, believe_nobody, believe_owners, measure_owner_changes
from ka_ray.gates.shares import estimate_shares


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_shares_are_those_that_the_images_were_drawn_with(share):
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(20000, generator=generator) < share
    values = torch.randn(20000, generator=generator) + 2.0 * own
    odds = torch.sigmoid(2.0 * values - 2.0)  # exact for equal shares of N(2, 1) and N(0, 1)
    shares = estimate_shares(torch.stack([odds, 1 - odds], dim=1))
    assert float(shares[0]) == pytest.approx(share, abs=0.015)
    assert float(shares.sum()) == pytest.approx(1)


def test_the_shares_of_sure_owners_are_counted():
    probabilities = torch.tensor([[1.0, 0.0, 0.0]] * 3 + [[0.0, 1.0, 0.0]])
    assert estimate_shares(probabilities).tolist() == pytest.approx([0.75, 0.25, 0.0])


def test_a_gate_learns_which_images_belong_to_nobody(world):
    sample, owners, label_sets = world(900, 3, separation=4.0, loudness=3.0)
    pair = label_sets.__class__({name: label_sets.by_teacher[name] for name in ("t0", "t1")})
    two = sample.__class__({name: sample.features[name] for name in ("t0", "t1")}, sample.scores[:, :4])
    check = choose_gate(
        GateProblem.build(two, owners, pair)
    )  # those of t2 have the index 2: nobody of two teachers
    gate = GateProblem.build(two, owners, pair).fit(check.penalty, check.per_class)
    nobody = gate.nobody(two)
    assert float(((nobody > 0.5) == (owners == 2)).float().mean()) > 0.85
    assert gate.log_owners(two).shape == (900, 2)
    assert torch.allclose(gate.log_owners(two).exp().sum(dim=1), torch.ones(900), atol=1e-5)
    assert check.images == 600
    new, new_owners, _ = world(3000, 3, separation=4.0, loudness=3.0, seed=1)
    unseen = gate.nobody(sample.__class__({t: new.features[t] for t in ("t0", "t1")}, new.scores[:, :4]))
    assert check.nobody_found == pytest.approx(
        float((unseen[new_owners == 2] > 0.5).float().mean()), abs=0.06
    )
    assert check.lost == pytest.approx(float((unseen[new_owners < 2] > 0.5).float().mean()), abs=0.06)
    assert (
        GateProblem.build(two, torch.where(owners == 2, -1, owners), pair).fit(0.01, False).nobody(two)
        is None
    )


def test_a_gate_that_gives_many_of_the_teachers_images_to_nobody_does_not_help(world):
    sample, owners, label_sets = world(200, separation=3.0)
    check = choose_gate(GateProblem.build(sample, owners, label_sets))
    assert (check.nobody_found, check.lost) == (None, 0)
    assert check.helps
    assert dataclasses.replace(check, nobody_found=0.9, lost=0.09).helps
    assert not dataclasses.replace(check, nobody_found=1.0, lost=0.11).helps


def test_one_image_of_nobody_teaches_nothing(world):
    sample, owners, label_sets = world(200)
    first = torch.arange(200) == 0
    problem = GateProblem.build(sample, owners.masked_fill(first, 2), label_sets)
    assert not problem.knows_nobody
    assert len(problem.owners) == 199
    two = torch.arange(200) < 2
    assert GateProblem.build(sample, owners.masked_fill(two, 2), label_sets).knows_nobody
    assert not GateProblem.build(sample, owners.masked_fill(two, 2), label_sets, min_nobody=3).knows_nobody


def test_what_is_known_of_nobodys_images_is_believed(world):
    sample, _, label_sets = world(30)
    known = torch.tensor([2] * 5 + [0, 1] * 5 + [-1] * 15)
    said = torch.linspace(0, 1, 30)
    believed = believe_nobody(said, known, 2)
    assert believed.tolist() == [1.0] * 5 + [0.0] * 10 + said[15:].tolist()
    assert believe_nobody(None, known, 2).tolist() == [1.0] * 5 + [0.0] * 25
    # Nothing is believed of the teachers of such an image, and it changes to no other owner.
    gate = Gate.of_scores(label_sets)
    log_owners = gate.log_owners(sample)
    assert torch.equal(believe_owners(log_owners, known)[:5], log_owners[:5])
    wrong = log_owners[5:15].argmax(dim=1) != known[5:15]
    assert measure_owner_changes(gate, sample, known) == pytest.approx(float(wrong.sum()) / 30)
