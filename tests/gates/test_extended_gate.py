"""Test a gate to which teachers were added: against float64, saved, extended again, and refused."""

import json
import math

import pytest
import torch

from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates import ExtendedGate, Gate, GateSample
from ka_ray.gates.fit import GateProblem
from ka_ray.gates.gate import measure_owner_changes


def take_first(label_sets, count, center=False):
    return LabelSets(dict([*label_sets.by_teacher.items()][:count]), center=center)


def learn(world, center=False, nobody=False):
    """Learn a gate of two teachers; images of nobody are some of their own."""
    sample, owners, label_sets = world(60, 2)
    if nobody:
        owners = owners.where(torch.arange(60) % 3 > 0, torch.tensor(2))
    gate = GateProblem.build(sample, owners, LabelSets(label_sets.by_teacher, center=center))
    return gate.fit(0.001, True)


def extend(gate, label_sets):
    return ExtendedGate.from_state(gate.to_state(), json.loads(json.dumps(gate.describe())), label_sets)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("nobody", [False, True])
def test_log_owners_agree_with_a_loop_in_float64(world, center, nobody):
    gate = learn(world, center, nobody)
    sample, _, label_sets = world(40, 4, seed=1)
    label_sets = LabelSets(label_sets.by_teacher, center=center)
    features = {name: sample.features[name] for name in ("t0", "t1")}  # those of the others are not needed
    extended = extend(gate, label_sets)
    found = extended.log_owners(GateSample(features, sample.scores))
    assert extended.sources == ("t0", "t1")
    assert extended.nobody(sample) is None
    for image in (0, 17, 39):
        scores = sample.scores[image].double().view(4, 2)
        if center:
            scores = scores - scores.mean(dim=1, keepdim=True)
        energies = [sum(math.exp(score) for score in own) for own in scores.tolist()]
        inputs = torch.cat([rows[image] for rows in features.values()]).double()
        inputs = (inputs - gate.scaling.mean.double()) * gate.scaling.scale.double()
        corrected = scores[:2].reshape(-1) * gate.score_scale.double()[:4] + gate.bias.double()[:4]
        corrected = corrected + inputs @ gate.weight.double()[:, :4]
        parts = [sum(math.exp(value) for value in own) for own in corrected.view(2, 2).tolist()]
        known = sum(energies[:2]) / sum(energies)
        expected = [known * part / sum(parts) for part in parts] + [e / sum(energies) for e in energies[2:]]
        assert found[image].exp().tolist() == pytest.approx(expected, abs=1e-5)
    assert (gate.nobody(GateSample(features, sample.scores[:, :4])) is not None) == nobody


def test_it_changes_only_how_the_first_teachers_share_their_part(world):
    gate = learn(world)
    sample, _, label_sets = world(50, 3, seed=1)
    extended, scores = extend(gate, label_sets), Gate.of_scores(label_sets)
    before, after = scores.log_owners(sample).exp(), extended.log_owners(sample).exp()
    assert torch.allclose(after[:, 2], before[:, 2], atol=1e-6)
    assert not torch.allclose(after[:, :2], before[:, :2], atol=1e-2)
    changed = (before.argmax(dim=1) != after.argmax(dim=1)).double().mean()
    assert measure_owner_changes(extended, sample, torch.full((50,), -1)) == pytest.approx(float(changed))
    # A gate that learned nothing leaves the ensemble as it is.
    unchanged = extend(Gate.of_scores(take_first(label_sets, 2)), label_sets)
    expected = label_sets.amalgamate(sample.scores).log_softmax(dim=1)
    assert torch.allclose(unchanged.amalgamate(sample), expected, atol=1e-5)


def test_it_survives_saving_and_can_be_extended_again(world):
    gate = learn(world)
    sample, _, label_sets = world(30, 4, seed=1)
    three = extend(gate, take_first(label_sets, 3))
    restored = extend(three, take_first(label_sets, 3))
    first_three = GateSample(sample.features, sample.scores[:, :6])
    assert torch.equal(restored.log_owners(first_three), three.log_owners(first_three))
    # In two steps: what the ensemble gives to three teachers together, divided by their extended gate.
    energies = sample.scores.view(30, 4, 2).logsumexp(dim=2)
    divided = energies[:, :3].logsumexp(dim=1, keepdim=True) + three.log_owners(first_three)
    expected = torch.cat([divided, energies[:, 3:]], dim=1).log_softmax(dim=1)
    assert torch.allclose(extend(three, label_sets).log_owners(sample), expected, atol=1e-5)


def test_teachers_that_are_not_those_of_the_gate_are_refused(world):
    gate = learn(world)
    sets = dict(world(4, 3)[2].by_teacher)
    changed = sets | {"t1": ("t1_b", "t1_a")}
    for others in (changed, {name: sets[name] for name in ("t1", "t0", "t2")}, {"t0": sets["t0"]}):
        with pytest.raises(InputError, match="learned for the teachers t0, t1 with other classes"):
            extend(gate, LabelSets(others))
    with pytest.raises(InputError, match="centring"):
        extend(gate, LabelSets(sets, center=True))
