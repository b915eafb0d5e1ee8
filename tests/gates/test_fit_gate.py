"""Test gates from known owners and hints."""

import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.gates.cross_validation import assign_folds, choose_gate, measure_learning_curve
from ka_ray.gates.fit import GateProblem


def owner_accuracy(gate, sample, owners):
    return float((gate.log_owners(sample).argmax(dim=1) == owners).float().mean())


def ungated_accuracy(sample, owners, label_sets):
    energies = torch.stack([part.logsumexp(1) for part in label_sets.split(sample.scores)], dim=1)
    return float((energies.argmax(dim=1) == owners).float().mean())


def hide_all_but(owners, count):
    hidden = torch.full_like(owners, -1)
    for owner in owners.unique():
        places = (owners == owner).nonzero().flatten()[:count]
        hidden[places] = owner
    return hidden


@pytest.mark.parametrize("teachers", [2, 4])
def test_known_owners_raise_the_share_of_right_owners_on_new_images(world, teachers):
    sample, owners, label_sets = world(600, teachers)
    new, new_owners, _ = world(600, teachers, seed=1)
    gate = GateProblem.build(sample, owners, label_sets).fit(0.001, True)
    before = ungated_accuracy(new, new_owners, label_sets)
    assert owner_accuracy(gate, new, new_owners) > before + 0.05


def test_hints_are_used_and_images_without_owner_only_scale_the_features(world):
    sample, owners, label_sets = world(400)
    hints = hide_all_but(owners, 30)
    gate = GateProblem.build(sample, hints, label_sets).fit(0.01, False)
    assert torch.allclose(gate.scaling.mean[:5], sample.features["t0"].mean(dim=0))
    assert owner_accuracy(gate, sample, owners) > ungated_accuracy(sample, owners, label_sets) + 0.05


def test_a_strong_penalty_leaves_the_ensemble_as_it_is(world):
    sample, owners, label_sets = world(200)
    gate = GateProblem.build(sample, owners, label_sets).fit(1e6, False)
    assert float(gate.weight.abs().max()) < 1e-4


def test_unequal_numbers_of_hints_do_not_shift_the_gate(world):
    sample, owners, label_sets = world(2000, separation=0.0, loudness=1.0)
    owners = owners.clone()
    owners[(owners == 1) & (torch.arange(2000) % 20 != 1)] = -1  # ten times as many hints of t0 as of t1
    gate = GateProblem.build(sample, owners, label_sets).fit(1e6, False)
    assert float((gate.bias[:2].mean() - gate.bias[2:].mean()).abs()) < 0.5  # else log 10


def test_a_teacher_without_hints_is_named(world):
    sample, owners, label_sets = world(40)
    with pytest.raises(InputError, match="teacher t1 is known to be the owner, and there are 0"):
        GateProblem.build(sample, torch.where(owners == 1, -1, owners), label_sets).fit(0.01, False)


def test_folds_have_images_of_every_teacher():
    owners = torch.tensor([0] * 12 + [1] * 7)
    folds = assign_folds(owners, seed=3)
    for fold in range(5):
        assert set(owners[folds == fold].tolist()) == {0, 1}
    assert torch.equal(folds, assign_folds(owners, seed=3))


def test_cross_validation_says_that_telling_features_help_and_others_do_not(world):
    sample, owners, label_sets = world(200, separation=3.0)
    check = choose_gate(GateProblem.build(sample, owners, label_sets))
    assert check.helps
    assert check.owner_accuracy > check.ungated_owner_accuracy + 0.1
    noise, owners, label_sets = world(200, separation=0.0, loudness=2.0)
    assert not choose_gate(GateProblem.build(noise, owners, label_sets)).helps


def test_cross_validation_predicts_the_figures_on_new_images(world):
    sample, owners, label_sets = world(600)
    check = choose_gate(GateProblem.build(sample, owners, label_sets))
    new, new_owners, _ = world(4000, seed=5)
    gate = GateProblem.build(sample, owners, label_sets).fit(check.penalty, check.per_class)
    log_owners = gate.log_owners(new)
    loss = -log_owners[torch.arange(4000), new_owners].mean()
    assert check.log_loss == pytest.approx(float(loss), abs=0.05)
    assert check.owner_accuracy == pytest.approx(owner_accuracy(gate, new, new_owners), abs=0.04)
    assert check.ungated_owner_accuracy == pytest.approx(
        ungated_accuracy(new, new_owners, label_sets), abs=0.06
    )


def test_the_learning_curve_rises_and_leaves_out_what_cannot_be_judged(world):
    sample, owners, label_sets = world(400, 3)
    curve = measure_learning_curve(
        GateProblem.build(sample, owners, label_sets), (1, 5, 100, 132, 500), (0.001, False)
    )
    assert list(curve) == [5, 100]
    assert curve[100] > curve[5]
