"""Requirements that every method of amalgamation must meet."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from ka_ray.amalgamation import METHODS, Amalgamation
from ka_ray.numerics.moments import Moments
from ka_ray.stages.codes_learner import CodesLearner, build_amalgamations

TEACHERS = {"two": (8, 8), "three": (8, 5, 10), "five": (6, 4, 5, 6, 4)}
CODE_CHANNELS = 6
STEPS, BATCH_SIZE = 100, 128


def make_features(channels: Sequence[int], images: int = 200) -> Tensor:
    """Return maps ``[images, S, 3, 2]`` of teachers that mix and scale the same few factors differently."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    factors = noise(images, 3, 2, 5) * torch.tensor([1, 0.8, 0.6, 0.4, 0.3])
    parts = [
        (t + 1) * (factors @ noise(5, count) + 0.1 * noise(images, 3, 2, count)) + noise(count)
        for t, count in enumerate(channels)
    ]
    return torch.cat(parts, dim=-1).movedim(-1, 1).contiguous()


def flatten_positions(maps: Tensor) -> Tensor:
    return maps.movedim(1, -1).flatten(0, -2)


def train(method: str, channels: Sequence[int], steps: int) -> Amalgamation:
    torch.manual_seed(0)
    positions = flatten_positions(make_features(channels))
    moments, by_tap = {"tap": Moments.of(positions)}, {"tap": channels}
    amalgamations = build_amalgamations(method, by_tap, {"tap": CODE_CHANNELS})
    for link in range(len(METHODS[method].spans(channels))):
        learner = CodesLearner(method, moments, amalgamations, by_tap, link)
        parameters = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, 2e-2, betas=(0.9, 0.95))
        for _ in range(steps):
            rows = torch.randint(len(positions), (BATCH_SIZE,))
            optimizer.zero_grad()
            learner({"tap": positions[rows]})["tap"].backward()
            optimizer.step()
        learner.write_back_links()
    return amalgamations["tap"]


train_cached = cache(train)
every_method = pytest.mark.parametrize("method", METHODS)
every_case = pytest.mark.parametrize("channels", TEACHERS.values(), ids=TEACHERS)


@every_method
@every_case
def test_codes_have_the_requested_width_and_the_space_of_the_features(method, channels):
    maps = make_features(channels)
    amalgamation = train_cached(method, channels, STEPS)
    assert amalgamation.encode(maps).shape == (200, CODE_CHANNELS, 3, 2)
    assert amalgamation(maps).shape == maps.shape
    assert amalgamation.encode(maps[..., 0, 0]).shape == (200, CODE_CHANNELS)
    assert amalgamation(maps[..., 0, 0]).shape == (200, sum(channels))
    assert amalgamation.encode(maps).isfinite().all()
    assert amalgamation(maps).isfinite().all()


@every_method
@every_case
def test_every_position_is_encoded_by_the_same_map(method, channels):
    maps = make_features(channels)
    amalgamation = train_cached(method, channels, STEPS)
    code = amalgamation.encode(maps)
    torch.testing.assert_close(
        flatten_positions(code), amalgamation.encode(flatten_positions(maps)), rtol=1e-4, atol=1e-4
    )


@every_method
@every_case
def test_a_code_does_not_depend_on_the_other_images(method, channels):
    maps = make_features(channels)
    amalgamation = train_cached(method, channels, STEPS)
    order = torch.randperm(len(maps))
    code = amalgamation.encode(maps)
    torch.testing.assert_close(amalgamation.encode(maps[order]), code[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(amalgamation.encode(maps[:1]), code[:1], rtol=1e-4, atol=1e-4)


@every_method
@every_case
def test_the_closed_form_error_equals_the_error_over_the_data(method, channels):
    positions = flatten_positions(make_features(channels))
    moments = Moments.of(positions)
    amalgamation = train_cached(method, channels, STEPS)
    with torch.no_grad():
        squared_error = (amalgamation(positions) - positions).double().square().sum()
    total = (positions - positions.mean(0)).double().square().sum()
    error = amalgamation.relative_error(moments)
    assert error == pytest.approx(float(squared_error / total), rel=1e-3)
    assert moments.optimal_relative_error(CODE_CHANNELS) - 1e-9 <= error < 1


@every_method
@every_case
def test_training_lowers_the_error(method, channels):
    moments = Moments.of(make_features(channels))
    errors = [train_cached(method, channels, steps).relative_error(moments) for steps in (0, STEPS)]
    assert errors[1] < 0.8 * errors[0]


@every_method
@every_case
def test_the_whole_chain_equals_one_auto_encoder(method, channels):
    maps = make_features(channels)
    amalgamation = train_cached(method, channels, STEPS)
    autoencoder = amalgamation.to_autoencoder()
    torch.testing.assert_close(autoencoder.encode(maps), amalgamation.encode(maps), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder(maps), amalgamation(maps), rtol=1e-4, atol=1e-4)


@every_method
@every_case
def test_saved_and_loaded_weights_give_the_same_codes(method, channels):
    amalgamation = train_cached(method, channels, STEPS)
    weights = load(save(amalgamation.state_dict()))
    loaded = build_amalgamations(method, {"tap": channels}, {"tap": CODE_CHANNELS})["tap"]
    loaded.requires_grad_(False).load_state_dict(weights)
    maps = make_features(channels)
    assert torch.equal(loaded.encode(maps), amalgamation.encode(maps))


@every_method
def test_the_same_seed_trains_the_same_weights(method):
    first, second = (train(method, TEACHERS["three"], 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_method
@every_case
def test_the_loss_of_a_batch_is_the_mean_over_its_halves(method, channels):
    """Two data-parallel workers then have the gradients of one. DDP requires that each parameter is used."""
    positions = flatten_positions(make_features(channels))
    learner = METHODS[method].learner(Moments.of(positions), channels, CODE_CHANNELS)
    loss = learner(positions[:BATCH_SIZE])
    halves = [learner(half) for half in positions[:BATCH_SIZE].chunk(2)]
    torch.testing.assert_close(loss, torch.stack(halves).mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


@every_method
def test_constant_channels_give_finite_gradients_and_errors(method):
    channels = TEACHERS["three"]
    positions = flatten_positions(make_features(channels))
    positions[:, [0, 9, 12, 20]] = 1.5
    learner = METHODS[method].learner(Moments.of(positions), channels, CODE_CHANNELS)
    learner(positions[:BATCH_SIZE]).backward()
    assert all(p.grad.isfinite().all() for p in learner.parameters())
    assert learner.to_autoencoder().relative_error(Moments.of(positions)) < 3


@every_method
def test_a_teacher_may_be_wider_or_narrower_than_the_code(method):
    positions = flatten_positions(make_features((12, 3)))
    learner = METHODS[method].learner(Moments.of(positions), (12, 3), CODE_CHANNELS)
    assert learner.to_autoencoder().encode(positions).shape == (1200, CODE_CHANNELS)
