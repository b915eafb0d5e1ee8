"""Test the class model that self-taught gates are, and that few hints begin with."""

from dataclasses import replace

import pytest
import torch

from ka_ray.gates.class_model import SCORE_FACTOR, believe_class_model, fit_class_model
from ka_ray.gates.cross_validation import few_settings, list_settings, measure_learning_curve
from ka_ray.gates.fit import MANY_HINTS, GateProblem


def test_logits_are_those_of_gaussians_with_one_shrunk_covariance():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 3, generator=generator, dtype=torch.float64) + 0.5
    claimed = torch.rand(50, 4, generator=generator, dtype=torch.float64)
    claimed /= claimed.sum(dim=1, keepdim=True)
    weight, bias = fit_class_model(inputs, claimed, shrinkage=0.2)
    shares = claimed.mean(dim=0)
    means = [sum(claimed[i, c] * inputs[i] for i in range(50)) / claimed[:, c].sum() for c in range(4)]
    within = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(50):
        for c in range(4):
            gap = inputs[i] - means[c]
            within += claimed[i, c] * torch.outer(gap, gap) / 50
    covariance = within + 0.2 * within.trace() / 3 * torch.eye(3)
    densities = [torch.distributions.MultivariateNormal(mean, covariance) for mean in means]
    log_joint = torch.stack([d.log_prob(inputs) + s.log() for d, s in zip(densities, shares, strict=True)], 1)
    found = (inputs @ weight + bias).log_softmax(dim=1)
    assert torch.allclose(found, log_joint.log_softmax(dim=1), atol=1e-9)
    assert torch.allclose(weight.sum(dim=1), torch.zeros(3, dtype=torch.float64), atol=1e-9)


def test_names_of_classes_weigh_what_the_ensemble_says_by_their_owner(world):
    sample, _, label_sets = world(200)
    by_name = torch.randn(200, 4, generator=torch.Generator().manual_seed(3))
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(4))
    found = believe_class_model(inputs, replace(sample, by_name=by_name), label_sets)
    claimed = sample.scores.double().softmax(dim=1)
    for row in range(200):
        named = by_name[row].double().exp()
        claimed[row, :2] *= named[:2].sum() / named.sum()  # p(class | owner) stays the teacher's
        claimed[row, 2:] *= named[2:].sum() / named.sum()
    weight, bias = fit_class_model(inputs, claimed / claimed.sum(dim=1, keepdim=True))
    assert torch.allclose(found.weight, weight, atol=1e-5)
    assert torch.allclose(found.bias, bias, atol=1e-5)


def test_what_names_say_follows_the_images_of_a_sample(world):
    sample, _, _ = world(6)
    named = replace(sample, by_name=torch.arange(24.0).view(6, 4))
    joined = named.take(torch.tensor([4, 1])).join(named.take(torch.arange(6) == 2))
    assert torch.equal(joined.by_name, torch.arange(24.0).view(6, 4)[[4, 1, 2]])
    assert sample.take(torch.tensor([0])).join(sample).by_name is None


def hide_all_but(owners, count):
    hidden = torch.full_like(owners, -1)
    for owner in owners.unique():
        hidden[(owners == owner).nonzero().flatten()[:count]] = owner
    return hidden


def test_with_few_hints_a_strong_penalty_leaves_class_model_and_scores(world):
    sample, owners, label_sets = world(400)
    problem = GateProblem.build(sample, hide_all_but(owners, 20), label_sets)
    gate = problem.fit(1e6, False)
    inputs = gate.scaling(sample.features) @ problem.basis
    weight, bias = fit_class_model(inputs, sample.scores.softmax(dim=1))
    factor = gate.score_scale / SCORE_FACTOR  # learned, one per teacher
    logits = (sample.scores * SCORE_FACTOR + inputs @ weight + bias) * factor
    learned = gate.bias - bias * factor
    logits = logits + learned
    owned = torch.stack([part.logsumexp(dim=1) for part in label_sets.split(logits)], dim=1)
    assert torch.allclose(gate.log_owners(sample), owned.log_softmax(dim=1), atol=1e-4)
    assert torch.allclose(learned[0], learned[1], atol=1e-5)  # one bias per teacher


def test_the_gate_says_what_cross_validation_judged(world):
    sample, owners, label_sets = world(400)
    hints = hide_all_but(owners, 20)
    problem = GateProblem.build(sample, hints, label_sets)
    every = torch.arange(40)
    judged = problem.log_owners(problem.solve(0.05, False, every), every)
    gate = problem.fit(0.05, False)
    assert torch.allclose(judged, gate.log_owners(sample.take(hints >= 0)), atol=1e-4)


@pytest.mark.parametrize("nobody", [False, True])
def test_many_hints_or_images_of_nobody_need_no_class_model(world, nobody):
    sample, owners, label_sets = world(400)
    hints = hide_all_but(owners, 20 if nobody else MANY_HINTS)
    if nobody:
        hints[-30:] = 2
    problem = GateProblem.build(sample, hints, label_sets)
    assert torch.equal(problem.offset, problem.scores)


def test_the_learning_curve_judges_the_gates_that_few_hints_would_give(world):
    sample, owners, label_sets = world(800)
    every = GateProblem.build(sample, hide_all_but(owners, 300), label_sets)
    drawn = torch.zeros(600, dtype=torch.bool)
    for owner in range(2):
        drawn[(every.owners == owner).nonzero().flatten()[:30]] = True
    as_few = replace(every, prior=every.few_prior)
    judged = as_few.log_owners(as_few.solve(*few_settings(30), drawn), ~drawn)
    # The same hints, as a user would give them.
    few = hide_all_but(owners, 30)
    [settings] = list_settings(GateProblem.build(sample, few, label_sets))
    gate = GateProblem.build(sample, few, label_sets).fit(*settings)
    others = sample.take((hide_all_but(owners, 300) >= 0) & (few < 0))
    assert torch.allclose(judged, gate.log_owners(others), atol=1e-4)
    curve = measure_learning_curve(every, [30, 150], (0.001, True))
    assert list(curve) == [30, 150]
