"""The codes reach the known optimum, through the real loop, from stored half-precision features."""

import numpy as np
import pytest
import torch

from ka_ray.amalgamation import METHODS, AutoEncoder, Moments
from ka_ray.config import CodesConfig
from ka_ray.errors import InputError
from ka_ray.training import Batches, FitSettings, fit
from ka_ray.training import batches as batches_module
from ka_ray.training.codes import CodesLearner, empty_autoencoders, measure_moments

STACKED, WIDTHS = {"map": 24, "vector": 16}, {"map": 8, "vector": 5}
SPACE = {"map": (3, 3), "vector": ()}


@pytest.fixture
def store(make_store):
    """Features whose variances fall by four decades, in a random basis, around a mean."""
    rng, count = np.random.default_rng(0), 2000
    columns = {"image_id": np.arange(count)}
    for tap, channels in STACKED.items():
        basis = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
        deviations = 10 ** (-2 * np.linspace(0, 1, channels))
        values = rng.normal(size=(count, *SPACE[tap], channels)) * deviations @ basis + 1
        columns[tap] = np.moveaxis(values, -1, 1).astype(np.float16)
    return make_store(columns)


def flat(store, tap: str) -> np.ndarray:
    values = store.gather([tap], np.arange(len(store)))[tap].astype(np.float64)
    return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])


@pytest.mark.parametrize("batch_size", [64, 300])
def test_moments_run_over_every_image_and_position(store, batch_size):
    moments = measure_moments(Batches(store, list(STACKED), batch_size, 0, positions_per_image=2), STACKED)
    for tap in STACKED:
        values = flat(store, tap)
        assert moments[tap].count == len(values)
        np.testing.assert_allclose(moments[tap].mean, values.mean(0), rtol=1e-10)
        np.testing.assert_allclose(
            moments[tap].covariance, np.cov(values.T, bias=True), rtol=1e-8, atol=1e-12
        )


def test_moments_of_ranks_merge_to_the_whole(store, monkeypatch):
    merged = {tap: Moments.empty(channels) for tap, channels in STACKED.items()}
    for rank in range(4):
        monkeypatch.setattr(batches_module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(batches_module, "world_size", lambda: 4)
        mine = measure_moments(Batches(store, list(STACKED), 64, 0), STACKED)
        merged = {tap: merged[tap].merge(mine[tap]) for tap in STACKED}
    for tap in STACKED:
        np.testing.assert_allclose(
            merged[tap].covariance, np.cov(flat(store, tap).T, bias=True), rtol=1e-8, atol=1e-12
        )


@pytest.mark.parametrize("method", METHODS)
def test_trained_codes_are_within_five_percent_of_the_optimum(store, method):
    config = CodesConfig(method=method)
    batches = Batches(
        store, list(STACKED), config.batch_size, 0, positions_per_image=config.positions_per_image
    )
    moments = measure_moments(batches, STACKED)
    learner = CodesLearner(method, moments, WIDTHS)
    fit(learner, batches, FitSettings("codes", config.epochs, config.learning_rate), lambda progress: None)
    for tap, autoencoder in learner.collapse().items():
        values = flat(store, tap)
        eigenvalues = np.linalg.eigvalsh(np.cov(values.T, bias=True))
        optimum = eigenvalues[: -WIDTHS[tap]].sum() / eigenvalues.sum()
        with torch.no_grad():
            rebuilt = autoencoder.double()(torch.from_numpy(values)).numpy()
        error = ((rebuilt - values) ** 2).sum() / ((values - values.mean(0)) ** 2).sum()
        assert optimum <= error <= 1.05 * optimum, tap
        assert autoencoder.relative_error(moments[tap]) == pytest.approx(error, rel=1e-6)


def test_every_tap_has_its_own_loss_and_the_taps_do_not_meet(store):
    batches = Batches(store, list(STACKED), 64, 0, positions_per_image=4)
    learner = CodesLearner("direct", measure_moments(batches, STACKED), WIDTHS)
    losses = learner(next(iter(batches.epoch(1))))
    assert set(losses) == set(STACKED)
    losses["map"].backward()
    assert all(p.grad is not None for p in learner.taps["map"].parameters())
    assert all(p.grad is None for p in learner.taps["vector"].parameters())


def test_empty_autoencoders_take_what_was_collapsed(store):
    batches = Batches(store, list(STACKED), 64, 0)
    collapsed = CodesLearner("direct", measure_moments(batches, STACKED), WIDTHS).collapse()
    empty = empty_autoencoders(STACKED, WIDTHS)
    empty.load_state_dict(collapsed.state_dict())
    features = torch.randn(5, 24, 3, 3)
    assert isinstance(empty["map"], AutoEncoder)
    assert torch.equal(empty["map"](features), collapsed["map"](features))


def test_a_tap_that_never_varies_is_refused_before_training(make_store):
    columns = {"image_id": np.arange(20), "map": np.full((20, 24, 3, 3), 2.0, np.float16)}
    with pytest.raises(InputError, match="never vary"):
        measure_moments(Batches(make_store(columns), ["map"], 4, 0), {"map": 24})
