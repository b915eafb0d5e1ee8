"""Test that codes trained from stored half-precision features reach the known optimum."""

import numpy as np
import pytest
import torch
from torch import nn

from ka_ray.amalgamation import METHODS
from ka_ray.config import CodesConfig
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments
from ka_ray.stages.codes_learner import CodesLearner, build_amalgamations, measure_moments
from ka_ray.training import Batches, FitSettings, fit
from ka_ray.training import batches as batches_module

STACKED, WIDTHS = {"map": 24, "vector": 16}, {"map": 8, "vector": 5}
CHANNELS = {"map": (10, 8, 6), "vector": (6, 6, 4)}
SPACE = {"map": (3, 3), "vector": ()}


@pytest.fixture
def store(make_store):
    """Store features in a random basis with variances over four orders of magnitude, around a mean."""
    rng, count = np.random.default_rng(0), 2000
    columns = {"image_id": np.arange(count)}
    for tap, channels in STACKED.items():
        basis = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
        deviations = 10 ** (-2 * np.linspace(0, 1, channels))
        values = rng.normal(size=(count, *SPACE[tap], channels)) * deviations @ basis + 1
        columns[tap] = np.moveaxis(values, -1, 1).astype(np.float16)
    return make_store(columns)


def all_features(store, tap: str) -> np.ndarray:
    values = store.gather([tap], np.arange(len(store)))[tap].astype(np.float64)
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])


@pytest.mark.parametrize("batch_size", [64, 300])
def test_moments_cover_every_image_and_position(store, batch_size):
    batches = Batches(store, list(STACKED), batch_size, 0, positions_per_image=2)
    moments = measure_moments(batches, STACKED)
    for tap in STACKED:
        values = all_features(store, tap)
        assert moments[tap].count == len(values)
        np.testing.assert_allclose(moments[tap].mean, values.mean(0), rtol=1e-10)
        np.testing.assert_allclose(
            moments[tap].covariance, np.cov(values.T, bias=True), rtol=1e-8, atol=1e-12
        )


def test_merged_moments_of_all_ranks_equal_those_of_one_process(store, monkeypatch):
    merged = {tap: Moments.empty(channels) for tap, channels in STACKED.items()}
    for rank in range(4):
        monkeypatch.setattr(batches_module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(batches_module, "world_size", lambda: 4)
        rank_moments = measure_moments(Batches(store, list(STACKED), 64, 0), STACKED)
        merged = {tap: merged[tap].merge(rank_moments[tap]) for tap in STACKED}
    for tap in STACKED:
        np.testing.assert_allclose(
            merged[tap].covariance, np.cov(all_features(store, tap).T, bias=True), rtol=1e-8, atol=1e-12
        )


def train_codes(store, method: str) -> tuple[nn.ModuleDict, dict[str, Moments]]:
    """Train each link of each chain with the training loop and the default settings of the config."""
    config = CodesConfig()
    positions = config.positions_per_image
    batches = Batches(store, list(STACKED), config.batch_size, 0, positions_per_image=positions)
    moments = measure_moments(batches, STACKED)
    amalgamations = build_amalgamations(method, CHANNELS, WIDTHS)
    settings = FitSettings("codes", config.epochs, config.learning_rate, beta2=0.95)
    for link in range(len(amalgamations["map"].links)):
        learner = CodesLearner(method, moments, amalgamations, CHANNELS, link)
        fit(learner, batches, settings, lambda progress: None)
        learner.write_back_links()
    return amalgamations, moments


def test_trained_codes_are_within_five_percent_of_the_optimum(store):
    amalgamations, moments = train_codes(store, "direct")
    for tap, amalgamation in amalgamations.items():
        values = all_features(store, tap)
        eigenvalues = np.linalg.eigvalsh(np.cov(values.T, bias=True))
        optimum = eigenvalues[: -WIDTHS[tap]].sum() / eigenvalues.sum()
        with torch.no_grad():
            rebuilt = amalgamation.to_autoencoder().double()(torch.from_numpy(values)).numpy()
        error = ((rebuilt - values) ** 2).sum() / ((values - values.mean(0)) ** 2).sum()
        assert optimum <= error <= 1.05 * optimum, tap
        assert amalgamation.relative_error(moments[tap]) == pytest.approx(error, rel=1e-6)


def test_every_link_of_incremental_codes_is_within_five_percent_of_its_optimum(store):
    amalgamations, moments = train_codes(store, "incremental")
    for tap, amalgamation in amalgamations.items():
        assert len(amalgamation.links) == 2
        for number, link in enumerate(amalgamation.links):
            part = amalgamation.link_moments(moments[tap], number)
            assert link.relative_error(part) <= 1.05 * part.optimal_relative_error(WIDTHS[tap]), (tap, number)


def make_first_learner(store, method: str) -> CodesLearner:
    batches = Batches(store, list(STACKED), 64, 0)
    untrained = build_amalgamations(method, CHANNELS, WIDTHS)
    return CodesLearner(method, measure_moments(batches, STACKED), untrained, CHANNELS, 0)


def test_the_loss_of_a_tap_has_gradients_only_for_the_parameters_of_the_tap(store):
    learner = make_first_learner(store, "direct")
    losses = learner(next(iter(Batches(store, list(STACKED), 64, 0, positions_per_image=4).epoch(1))))
    assert set(losses) == set(STACKED)
    losses["map"].backward()
    assert all(p.grad is not None for p in learner.learners["map"].parameters())
    assert all(p.grad is None for p in learner.learners["vector"].parameters())


@pytest.mark.parametrize("method", METHODS)
def test_only_the_learners_parameters_are_trainable(store, method):
    learner = make_first_learner(store, method)
    trained = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in learner.named_parameters() if name.startswith("learners.")}


def test_writing_back_changes_only_the_trained_link(store):
    learner = make_first_learner(store, "incremental")
    chain = learner.amalgamations["map"]
    before = {name: weights.clone() for name, weights in chain.state_dict().items()}
    learner.write_back_links()
    changed = {name for name, weights in chain.state_dict().items() if not torch.equal(weights, before[name])}
    assert changed == {name for name in before if name.startswith("links.0.")}
    collapsed = learner.learners["map"].to_autoencoder().state_dict()
    assert all(torch.equal(chain.links[0].state_dict()[name], weights) for name, weights in collapsed.items())


def test_a_code_too_wide_for_the_method_is_refused_and_the_message_names_the_tap():
    channels = {"map": (2, 3, 9)}
    assert build_amalgamations("direct", channels, {"map": 6})["map"].spans == (14,)
    with pytest.raises(InputError, match=r"^taps\.map: a code of 6 channels is wider than the 5 "):
        build_amalgamations("incremental", channels, {"map": 6})


def test_a_teacher_with_constant_features_is_refused_and_the_message_names_the_tap():
    features = torch.randn(40, 24)
    features[:, 10:18] = 1.0
    untrained = build_amalgamations("common_features", {"map": CHANNELS["map"]}, WIDTHS)
    with pytest.raises(InputError, match=r"^taps\.map: the features of teacher 2 of 3 never vary"):
        CodesLearner("common_features", {"map": Moments.of(features)}, untrained, CHANNELS, 0)


def test_a_tap_with_constant_features_is_refused(make_store):
    columns = {"image_id": np.arange(20), "map": np.full((20, 24, 3, 3), 2.0, np.float16)}
    with pytest.raises(InputError, match="never vary"):
        measure_moments(Batches(make_store(columns), ["map"], 4, 0), {"map": 24})
