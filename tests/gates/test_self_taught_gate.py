"""Test pseudo-owners and the gate that teaches itself."""

import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.gates.gate import measure_owner_changes
from ka_ray.gates.pseudo_owners import choose_pseudo_owners, measure_claims
from ka_ray.gates.self_taught import equalise_energies, fit_self_gate
from ka_ray.gates.shares import match_shares


def test_equalised_energies_have_one_deviation():
    energies = torch.randn(500, 3) * torch.tensor([1.0, 2.0, 6.0]) + torch.tensor([0.0, 5.0, -3.0])
    deviations = (energies * equalise_energies(energies)).std(dim=0, correction=0)
    assert torch.allclose(deviations, energies.std(dim=0, correction=0).mean().expand(3), rtol=1e-4)


@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (8.0, 1.0, 1.0)])
def test_shifted_logits_have_the_shares_asked_for(shares):
    logits = torch.randn(500, 3) + torch.tensor([0.0, 5.0, -3.0])
    owned = (logits + match_shares(logits, torch.tensor(shares))).softmax(dim=1).mean(dim=0)
    assert torch.allclose(owned, torch.tensor(shares) / sum(shares), atol=1e-4)


def test_a_claim_is_the_lead_over_the_strongest_other_teacher():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, -5.0]])
    assert measure_claims(logits).tolist() == [[1.0, -2.0, -1.0], [0.0, 0.0, -5.0]]


def test_pseudo_owners_come_from_every_predicted_class_and_are_the_clearest(world):
    sample, _, label_sets = world(400)
    energies = torch.stack([part.logsumexp(1) for part in label_sets.split(sample.scores)], dim=1)
    owners = choose_pseudo_owners(energies, sample.scores, label_sets, 0.2)
    claims = measure_claims(energies)
    for teacher, scores in enumerate(label_sets.split(sample.scores)):
        predicted = scores.argmax(dim=1)
        for label in range(2):
            places = predicted == label
            chosen = places & (owners == teacher)
            assert int(chosen.sum()) == int(places.sum() * 0.2)
            others = places & (owners != teacher)
            assert claims[chosen, teacher].min() >= claims[others, teacher].max()


@pytest.mark.parametrize("teachers", [2, 3])
def test_a_gate_teaches_itself_where_features_tell_more_than_energies(world, teachers):
    sample, owners, label_sets = world(3000, teachers, separation=4.0, loudness=1.5)
    energies = torch.stack([part.logsumexp(1) for part in label_sets.split(sample.scores)], dim=1)
    before = (energies.argmax(dim=1) == owners).float().mean()
    gate = fit_self_gate(sample, label_sets)
    assert (gate.log_owners(sample).argmax(dim=1) == owners).float().mean() > before + 0.03
    assert 0 < measure_owner_changes(gate, sample, torch.full((len(sample),), -1)) < 0.4


def test_without_a_correction_every_teacher_owns_its_share(world):
    sample, _, label_sets = world(500)
    sample.scores[:, :2] *= 3
    gate = fit_self_gate(sample, label_sets, correction=0.0)
    owned = gate.log_owners(sample).exp().mean(dim=0)
    assert torch.allclose(owned, torch.tensor([0.5, 0.5]), atol=1e-3)


def test_a_teacher_that_claims_nothing_is_named(world):
    sample, _, label_sets = world(4, 2)
    with pytest.raises(InputError, match="no image is claimed by teacher"):
        fit_self_gate(sample.take(torch.zeros(4, dtype=torch.bool)), label_sets)


def test_a_gate_that_knows_unequal_shares_beats_one_that_assumes_equal_ones(world):
    sample, owners, label_sets = world(6000, separation=4.0, loudness=1.5)
    kept = (owners == 0) | (torch.arange(6000) % 18 == 1)  # nine of ten images belong to t0
    sample, owners = sample.take(kept), owners[kept]

    def accuracy(shares):
        gate = fit_self_gate(sample, label_sets, shares=shares)
        return float((gate.log_owners(sample).argmax(dim=1) == owners).float().mean())

    assert accuracy(torch.tensor([9.0, 1.0])) > accuracy(None)
