"""Test what a gate computes, how it is saved, and that features of any width count the same."""

import json
import math

import pytest
import torch

from ka_ray.amalgamation.gated_scores import amalgamate_by_owner
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates.fit import GateProblem
from ka_ray.gates.gate import Gate, believe_owners, measure_owner_changes
from ka_ray.gates.inputs import GateSample, InputScaling


def zero_gate(sample, label_sets):
    scaling, classes = InputScaling.measure(sample.features), label_sets.num_scores
    weight, scale = torch.zeros(len(scaling.mean), classes), torch.ones(classes)
    return Gate(label_sets, scaling, weight, torch.zeros(classes), scale, "hints")


def test_a_gate_that_learned_nothing_is_the_ensemble(world):
    sample, _, label_sets = world(30, 3)
    gate = zero_gate(sample, label_sets)
    expected = label_sets.amalgamate(sample.scores).log_softmax(dim=1)
    assert torch.allclose(gate.amalgamate(sample), expected, atol=1e-5)
    unknown = torch.full((30,), -1)
    assert measure_owner_changes(gate, sample, unknown) == 0


def test_the_gate_of_the_scores_is_the_ensemble_without_features(world):
    sample, _, label_sets = world(30, 3)
    gate = Gate.of_scores(label_sets)
    restored = Gate.from_state(gate.to_state(), gate.describe(), label_sets)
    scores = GateSample({}, sample.scores)
    expected = label_sets.amalgamate(sample.scores).log_softmax(dim=1)
    assert torch.allclose(restored.amalgamate(scores), expected, atol=1e-5)


def test_known_owners_stand_instead_of_what_a_gate_says(world):
    sample, owners, label_sets = world(30, 3)
    said = Gate.of_scores(label_sets).log_owners(sample)
    known = owners.where(torch.arange(30) < 10, torch.tensor(-1))
    believed = believe_owners(said, known)
    assert torch.equal(believed[10:], said[10:])
    for image in range(10):
        expected = [0.999 if teacher == owners[image] else 0.0005 for teacher in range(3)]
        assert believed[image].exp().tolist() == pytest.approx(expected)
    # With every owner known, the amalgamated scores choose among the owner's classes: the oracle.
    scores = amalgamate_by_owner(label_sets, sample.scores, believe_owners(said, owners))
    oracle = [
        2 * int(owner) + int(row[2 * owner : 2 * owner + 2].argmax())
        for row, owner in zip(sample.scores, owners, strict=True)
    ]
    assert scores.argmax(dim=1).tolist() == oracle
    wrong = (said.argmax(dim=1) != owners).double().mean()
    assert measure_owner_changes(Gate.of_scores(label_sets), sample, owners) == pytest.approx(float(wrong))


def test_log_owners_agree_with_a_loop_in_float64(world):
    sample, owners, label_sets = world(40, 3)
    gate = GateProblem.build(sample, owners, label_sets).fit(0.01, True)
    for image in (0, 17, 39):
        inputs = []
        for rows in sample.features.values():
            rows = rows.double()
            standardised = (rows[image] - rows.mean(dim=0)) / rows.var(dim=0, correction=0).sqrt()
            inputs += [value / rows.shape[1] ** 0.5 for value in standardised]
        corrected = [
            float(sample.scores[image, c] * gate.score_scale[c])
            + sum(float(x * w) for x, w in zip(inputs, gate.weight[:, c], strict=True))
            + float(gate.bias[c])
            for c in range(6)
        ]
        logits = [math.log(sum(math.exp(corrected[2 * k + i]) for i in range(2))) for k in range(3)]
        expected = torch.tensor(logits).log_softmax(dim=0)
        assert torch.allclose(gate.log_owners(sample)[image], expected, atol=1e-4)


def test_a_gate_survives_saving(world):
    sample, owners, label_sets = world(40)
    gate = GateProblem.build(sample, owners, label_sets).fit(0.01, False)
    description = json.loads(json.dumps(gate.describe()))
    restored = Gate.from_state(gate.to_state(), description, label_sets)
    assert torch.equal(restored.log_owners(sample), gate.log_owners(sample))
    assert restored.learned_from == "hints"


def test_a_gate_of_other_classes_is_refused(world):
    sample, owners, label_sets = world(40)
    gate = GateProblem.build(sample, owners, label_sets).fit(0.01, False)
    others = LabelSets({"t0": ("t0_a", "t0_b"), "t1": ("t1_a", "other")})
    with pytest.raises(InputError, match="learn it again"):
        Gate.from_state(gate.to_state(), gate.describe(), others)
    with pytest.raises(InputError, match="lacks weight"):
        Gate.from_state({"mean": gate.bias, "scale": gate.bias}, gate.describe(), label_sets)


def test_missing_features_are_named(world):
    sample, owners, label_sets = world(40)
    gate = GateProblem.build(sample, owners, label_sets).fit(0.01, False)
    with pytest.raises(InputError, match="features of t1"):
        gate.log_owners(GateSample({"t0": sample.features["t0"]}, sample.scores))


def test_every_source_has_the_same_variance_whatever_its_width():
    features = {
        "narrow": 5 + 3 * torch.randn(200, 2),
        "wide": torch.randn(200, 50),
        "flat": torch.ones(200, 4),
    }
    inputs = InputScaling.measure(features)(features)
    totals = [float(part.var(dim=0, correction=0).sum()) for part in inputs.split([2, 50, 4], dim=1)]
    assert totals == pytest.approx([1, 1, 0], abs=1e-4)
    assert float(inputs.mean(dim=0).abs().max()) < 1e-5
