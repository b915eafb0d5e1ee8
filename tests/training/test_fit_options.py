"""Test the options of the training loop for networks: rates, batch norms, average, clipping, resuming."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.training import Batches, FitSettings, Progress, WeightAverage, fit
from ka_ray.training.optimizer import learning_rate_factor

BATCH_SIZE, STEPS_PER_EPOCH, EPOCHS, RATE = 8, 4, 4, 0.05
EVERYTHING = {
    "weight_decay": 0.1,
    "warmup": 0.3,
    "layer_decay": 0.5,
    "decay_biases": False,
    "batch_norms": "frozen",
    "clip_norm": 0.2,
    "amp": "bf16",
}


class Learner(nn.Module):
    """Learner of a small network with batch norm, towards given targets."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
        self.norm_modes: list[bool] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.norm_modes.append(self.network[1].training)
        weight = self.network[0].weight
        return {"loss": (self.network(batch["x"].to(weight)) - batch["y"].to(weight)).square().mean()}


@pytest.fixture
def batches(make_store) -> Batches:
    rng, count = np.random.default_rng(0), BATCH_SIZE * STEPS_PER_EPOCH
    columns = {
        "image_id": np.arange(count),
        "x": rng.normal(size=(count, 3)),
        "y": rng.normal(size=(count, 2)),
    }
    return Batches(make_store(columns), ["x", "y"], BATCH_SIZE, seed=5)


def settings_of(**options: Any) -> FitSettings:
    return FitSettings("joint", EPOCHS, RATE, **options)


def train_by_plain_loop(batches: Batches, clip_norm: float, warmup: float) -> nn.Module:
    """Train with clipped gradients, float64, computed by hand."""
    learner = Learner(torch.float64).train()
    optimizer = torch.optim.AdamW(learner.parameters(), RATE, weight_decay=0)
    total, step = EPOCHS * STEPS_PER_EPOCH, 0
    for epoch in range(1, EPOCHS + 1):
        for batch in batches.epoch(epoch):
            optimizer.param_groups[0]["lr"] = RATE * learning_rate_factor(step, total, warmup)
            optimizer.zero_grad()
            learner(batch)["loss"].backward()
            norm = sum(p.grad.square().sum() for p in learner.parameters()).sqrt()
            for parameter in learner.parameters():
                parameter.grad *= min(1.0, clip_norm / norm)
            optimizer.step()
            step += 1
    return learner


@pytest.mark.parametrize("clip_norm", [0.05, 0.3, 1e6])
def test_clipped_steps_and_the_warm_up_equal_those_of_a_plain_loop(batches, clip_norm):
    learner = Learner(torch.float64)
    fit(learner, batches, settings_of(clip_norm=clip_norm, warmup=0.5), lambda progress: None)
    expected = train_by_plain_loop(batches, clip_norm, 0.5)
    for name, tensor in learner.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_without_the_options_training_is_that_of_a_plain_loop_bit_by_bit(batches):
    learner, plain = Learner(), Learner().train()
    fit(learner, batches, settings_of(), lambda progress: None)
    optimizer = torch.optim.AdamW(plain.parameters(), RATE, weight_decay=0, fused=True)
    for step, batch in enumerate(b for epoch in range(1, EPOCHS + 1) for b in batches.epoch(epoch)):
        optimizer.param_groups[0]["lr"] = RATE * learning_rate_factor(step, EPOCHS * STEPS_PER_EPOCH)
        optimizer.zero_grad()
        plain(batch)["loss"].backward()
        optimizer.step()
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in learner.state_dict().items())


@pytest.mark.parametrize("batch_norms", ["train", "frozen"])
def test_frozen_batch_norms_keep_their_statistics_exactly_and_learn_weights(batches, batch_norms):
    learner = Learner()
    norm = learner.network[1]
    norm.running_mean.fill_(0.3)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}

    def evaluate(progress: Progress) -> None:
        learner.eval()  # as the evaluation after an epoch does, and then
        learner.train()

    fit(learner, batches, settings_of(batch_norms=batch_norms), evaluate)
    frozen = batch_norms == "frozen"
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(norm.state_dict()[name], before[name]) == frozen
    for name in ("weight", "bias"):
        assert not torch.equal(norm.state_dict()[name], before[name])
    assert learner.norm_modes == [not frozen] * EPOCHS * STEPS_PER_EPOCH


def test_layers_far_from_the_scores_move_by_a_smaller_rate(batches):
    """With a tiny decay per block, only the last layer moves."""
    learner, start = Learner(), Learner()
    fit(learner, batches, settings_of(layer_decay=1e-9), lambda progress: None)
    moved = {
        name: not torch.allclose(parameter, start.get_parameter(name), rtol=0, atol=1e-6)
        for name, parameter in learner.named_parameters()
    }
    assert {name for name, has_moved in moved.items() if has_moved} == {"network.3.weight", "network.3.bias"}


def test_raw_and_averaged_network_are_there_at_the_end_of_each_epoch(batches):
    learner, kept = Learner(torch.float64), []
    average = WeightAverage(learner.network, 0.9)

    def keep(progress: Progress) -> None:
        if progress.epoch_ended:
            kept.append([m[3].weight.detach().clone() for m in (learner.network, average.module)])

    fit(learner, batches, settings_of(), keep, average)
    assert len(kept) == EPOCHS
    # A run that ends after an epoch would have another schedule, so the steps are repeated one by one.
    steps, expected = [], None
    again = Learner(torch.float64)
    again.register_forward_pre_hook(
        lambda module, inputs: steps.append(again.network[3].weight.detach().clone())
    )
    fit(again, batches, settings_of(), lambda progress: None)
    weights = [*steps[1:], again.network[3].weight.detach()]
    for step, weight in enumerate(weights):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        if (step + 1) % STEPS_PER_EPOCH == 0:
            raw, averaged = kept[step // STEPS_PER_EPOCH]
            assert torch.equal(raw, weight)
            torch.testing.assert_close(averaged, expected, rtol=1e-10, atol=1e-12)


class Killed(Exception):
    """Represent the death of a process."""


@pytest.mark.parametrize("batch_norms", ["train", "frozen"])
def test_resumed_training_with_every_option_equals_uninterrupted_training(batches, tmp_path, batch_norms):
    options = EVERYTHING | {"batch_norms": batch_norms}

    def run(report, **more: Any) -> list[dict[str, Tensor]]:
        learner = Learner()
        average = WeightAverage(learner.network, 0.8)
        fit(learner, batches, settings_of(**options, **more), report, average)
        return [learner.state_dict(), average.state_dict()]

    def kill_in_third_epoch(progress: Progress) -> None:
        if progress.epoch == 3:
            raise Killed

    uninterrupted = run(lambda progress: None)
    with pytest.raises(Killed):
        run(kill_in_third_epoch, checkpoint=tmp_path / "fit.epoch")
    epochs: list[int] = []
    resumed = run(lambda progress: epochs.append(progress.epoch), checkpoint=tmp_path / "fit.epoch")
    assert epochs == [3, 4]
    assert resumed[1]["n_averaged"] == EPOCHS * STEPS_PER_EPOCH
    for found, expected in zip(resumed, uninterrupted, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_fp16_on_the_cpu_is_refused_before_the_first_step(batches):
    learner = Learner()
    with pytest.raises(InputError, match="stage joint, amp: fp16 needs a GPU"):
        fit(learner, batches, settings_of(amp="fp16"), lambda progress: None)
    assert learner.norm_modes == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_on_a_gpu_learns_about_the_same_as_float32(make_store, batches):
    on_gpu = Batches(batches.store, ["x", "y"], BATCH_SIZE, seed=5, device="cuda")
    losses = []
    for amp in ("none", "fp16"):
        learner = Learner().cuda()
        history = fit(learner, on_gpu, settings_of(amp=amp, clip_norm=1.0), lambda progress: None)
        losses.append([record.losses["loss"] for record in history])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
