"""Chains of auto-encoders: codes and rebuilt features, training, and adding a teacher.

In an incremental chain, the second link encodes the code of the first one together with the third teacher's
features, and so on: the formulas below are nested in this way.
"""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ka_ray.amalgamation import METHODS, Amalgamation
from ka_ray.amalgamation.chain import direct_spans, incremental_spans
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments

SPANS, CODE_CHANNELS = (7, 4, 5), 3


def make_chain() -> Amalgamation:
    return Amalgamation(SPANS, CODE_CHANNELS)


def make_features(channels: int = sum(SPANS), count: int = 500) -> Tensor:
    return torch.randn(count, 6) @ torch.randn(6, channels) + 0.1 * torch.randn(count, channels) + 2


def train(chain: Amalgamation, link: int, features: Tensor, steps: int = 200) -> None:
    moments = chain.link_moments(Moments.of(features), link)
    learner = METHODS["incremental"].learner(moments, [], chain.code_channels)
    optimizer = torch.optim.Adam(learner.parameters(), 2e-2, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(features), (128,))
        optimizer.zero_grad()
        learner(chain.link_input(features[rows], link)).backward()
        optimizer.step()
        schedule.step()
    chain.links[link].load_state_dict(learner.to_autoencoder().state_dict())


def apply_linear(linear: nn.Linear, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=1) @ linear.weight.T + linear.bias


def test_spans_of_direct_and_incremental_chains():
    assert direct_spans([4, 6, 8]) == (18,)
    assert incremental_spans([4, 6]) == (10,)
    assert incremental_spans([4, 6, 8, 3]) == (10, 8, 3)


def test_the_code_equals_the_nested_formula():
    chain, features = make_chain(), make_features()
    first, second, third = features.split(SPANS, dim=1)
    one, two, three = chain.links
    code_1 = apply_linear(one.encoder, first)
    code_2 = apply_linear(two.encoder, code_1, second)
    code_3 = apply_linear(three.encoder, code_2, third)
    torch.testing.assert_close(chain.encode(features), code_3)
    assert torch.equal(chain.link_input(features, 0), first)
    torch.testing.assert_close(chain.link_input(features, 1), torch.cat([code_1, second], dim=1))
    torch.testing.assert_close(chain.link_input(features, 2), torch.cat([code_2, third], dim=1))
    assert not chain.link_input(features, 2).requires_grad


def test_the_rebuilt_features_equal_the_nested_formula():
    chain, features = make_chain(), make_features()
    one, two, three = chain.links
    last = apply_linear(three.decoder, chain.encode(features))
    middle = apply_linear(two.decoder, last[:, :CODE_CHANNELS])
    start = apply_linear(one.decoder, middle[:, :CODE_CHANNELS])
    expected = torch.cat([start, middle[:, CODE_CHANNELS:], last[:, CODE_CHANNELS:]], dim=1)
    torch.testing.assert_close(chain(features), expected)


def test_a_chain_of_one_link_equals_its_auto_encoder():
    chain, features = Amalgamation((16,), 5), make_features()
    assert torch.equal(chain.encode(features), chain.links[0].encode(features))
    assert torch.equal(chain(features), chain.links[0](features))
    for merged, single in zip(chain.to_autoencoder().parameters(), chain.links[0].parameters(), strict=True):
        torch.testing.assert_close(merged, single)


@pytest.mark.parametrize("link", [0, 1, 2])
def test_link_moments_equal_the_moments_of_the_link_input(link):
    chain, features = make_chain().double(), make_features().double()
    moments = chain.link_moments(Moments.of(features), link)
    values = chain.link_input(features, link).numpy()
    assert moments.count == len(features)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.covariance, np.cov(values.T, bias=True), rtol=1e-9, atol=1e-10)


def test_every_link_can_be_trained_to_its_optimum():
    chain, features = make_chain(), make_features()
    for link in range(3):
        train(chain, link, features)
        moments = chain.link_moments(Moments.of(features), link)
        error = chain.links[link].relative_error(moments)
        assert error <= 1.05 * moments.optimal_relative_error(CODE_CHANNELS)


def test_an_incremental_chain_is_near_the_optimum_if_the_scales_of_the_teachers_differ():
    """The features of each teacher are ten times as large as those of the teacher before."""
    features = make_features() * torch.tensor([1.0] * 7 + [10.0] * 4 + [100.0] * 5)
    chain, moments = Amalgamation(SPANS, 6), Moments.of(features)
    for link in range(3):
        train(chain, link, features, steps=400)
    assert chain.relative_error(moments) <= 1.2 * moments.optimal_relative_error(6)


def test_adding_a_teacher_keeps_the_earlier_links_bit_for_bit():
    features = make_features(sum(SPANS) + 6)
    three = make_chain()
    for link in range(3):
        train(three, link, features[:, : sum(SPANS)], steps=20)
    before = copy.deepcopy(three.state_dict())
    four = Amalgamation((*SPANS, 6), CODE_CHANNELS)
    four.load_state_dict(three.state_dict(), strict=False)
    train(four, 3, features, steps=20)
    after = four.state_dict()
    assert before.keys() < after.keys()
    assert all(torch.equal(after[name], weights) for name, weights in before.items())
    assert torch.equal(four.link_input(features, 3)[:, :CODE_CHANNELS], three.encode(features[:, :16]))


def test_a_code_wider_than_the_first_span_is_refused():
    Amalgamation((4, 8), 4)
    with pytest.raises(InputError, match=r"a code of 5 channels is wider than the 4 .* lower codes\.widths"):
        Amalgamation((4, 8), 5)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_a_standardised_code_has_unit_variance_and_rebuilds_the_same(scale):
    features = scale * torch.randn(400, 9) @ torch.randn(9, 9)
    chain = Amalgamation((6, 3), 4)
    rebuilt = chain(features)
    chain.standardise(Moments.of(features))
    assert chain.encode(features).var(dim=0, correction=0).mean().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(chain(features), rebuilt, rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(
        chain.to_autoencoder().encode(features), chain.encode(features), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(chain.to_autoencoder()(features), rebuilt, rtol=1e-3, atol=1e-3 * scale)
