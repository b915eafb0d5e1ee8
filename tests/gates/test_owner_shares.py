"""Test images of nobody, and shares of owners."""

import pytest
import torch

from ka_ray.gates.cross_validation import choose_gate
from ka_ray.gates.fit import GateProblem
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
    assert (
        GateProblem.build(two, torch.where(owners == 2, -1, owners), pair).fit(0.01, False).nobody(two)
        is None
    )
