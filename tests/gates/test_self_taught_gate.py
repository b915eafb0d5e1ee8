"""Test the gate that teaches itself, and the shares of owners that a user may state."""

import pytest
import torch

from ka_ray.gates.class_model import SCORE_FACTOR, fit_class_model
from ka_ray.gates.gate import measure_owner_changes
from ka_ray.gates.self_taught import fit_self_gate
from ka_ray.gates.shares import match_shares


@pytest.mark.parametrize("shares", [(1.0, 1.0, 1.0), (8.0, 1.0, 1.0)])
def test_shifted_logits_have_the_shares_asked_for(shares):
    logits = torch.randn(500, 3) + torch.tensor([0.0, 5.0, -3.0])
    owned = (logits + match_shares(logits, torch.tensor(shares))).softmax(dim=1).mean(dim=0)
    assert torch.allclose(owned, torch.tensor(shares) / sum(shares), atol=1e-4)


def test_it_is_part_of_the_scores_and_a_class_model(world):
    sample, _, label_sets = world(100, 3)
    gate = fit_self_gate(sample, label_sets)
    basis = gate.scaling.find_basis(sample.features, 160)
    inputs = gate.scaling(sample.features) @ basis
    weight, bias = fit_class_model(inputs, sample.scores.softmax(dim=1))
    logits = SCORE_FACTOR * sample.scores + inputs @ weight + bias
    owned = torch.stack([part.logsumexp(dim=1) for part in label_sets.split(logits)], dim=1)
    assert torch.allclose(gate.log_owners(sample), owned.log_softmax(dim=1), atol=1e-4)


@pytest.mark.parametrize("teachers", [2, 3])
def test_a_gate_teaches_itself_where_features_tell_more_than_energies(world, teachers):
    sample, owners, label_sets = world(3000, teachers, separation=4.0, loudness=1.5)
    energies = torch.stack([part.logsumexp(1) for part in label_sets.split(sample.scores)], dim=1)
    before = (energies.argmax(dim=1) == owners).float().mean()
    gate = fit_self_gate(sample, label_sets)
    assert (gate.log_owners(sample).argmax(dim=1) == owners).float().mean() > before + 0.03
    assert 0 < measure_owner_changes(gate, sample, torch.full((len(sample),), -1)) < 0.4


def test_every_teacher_owns_the_share_that_is_stated(world):
    sample, _, label_sets = world(500)
    gate = fit_self_gate(sample, label_sets, shares=torch.tensor([3.0, 1.0]))
    owned = gate.log_owners(sample).exp().mean(dim=0)
    assert torch.allclose(owned, torch.tensor([0.75, 0.25]), atol=1e-3)


def test_a_gate_that_knows_unequal_shares_beats_one_that_is_told_wrong_ones(world):
    sample, owners, label_sets = world(6000, separation=4.0, loudness=1.5)
    kept = (owners == 0) | (torch.arange(6000) % 18 == 1)  # nine of ten images belong to t0
    sample, owners = sample.take(kept), owners[kept]

    def accuracy(shares):
        gate = fit_self_gate(sample, label_sets, shares=torch.tensor(shares))
        return float((gate.log_owners(sample).argmax(dim=1) == owners).float().mean())

    assert accuracy([9.0, 1.0]) > accuracy([1.0, 1.0])
