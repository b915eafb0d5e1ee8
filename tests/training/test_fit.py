"""Test the training loop against optimizer steps in numpy."""

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.training import Batches, FitSettings, fit, loss_meter
from ka_ray.training.fit import Progress, learning_rate_factor

BATCH_SIZE, STEPS_PER_EPOCH = 4, 3


class Regression(nn.Module):
    """Learner with two named losses of one weight, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
        self.modes: list[bool] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.modes.append(self.training)
        residual = batch["x"] @ self.weight - batch["y"]
        return {"fit": residual.square().mean(), "size": 0.1 * (self.weight * self.frozen).square().sum()}


@pytest.fixture
def batches(make_store) -> Batches:
    rng = np.random.default_rng(0)
    count = BATCH_SIZE * STEPS_PER_EPOCH + 1
    return Batches(
        make_store(
            {"image_id": np.arange(count), "x": rng.normal(size=(count, 3)), "y": rng.normal(size=count)}
        ),
        ["x", "y"],
        BATCH_SIZE,
        seed=5,
    )


def train_in_numpy(
    batches: Batches, total: int, rate: float, weight_decay: float = 0.0, beta2: float = 0.999
) -> tuple[np.ndarray, list[float]]:
    """Train with AdamW on the sum of both losses in numpy.

    Returns:
        The weights, and the mean loss of each epoch.
    """
    weight = np.array([0.5, -1.0, 2.0])
    first, second, step = np.zeros(3), np.zeros(3), 0
    means = []
    for epoch in range(1, math.ceil(total / STEPS_PER_EPOCH) + 1):
        losses = []
        for batch in list(batches.epoch(epoch))[: total - step]:
            x, y = batch["x"].numpy(), batch["y"].numpy()
            residual = x @ weight - y
            losses.append((residual**2).mean() + 0.1 * (weight**2).sum())
            gradient = 2 * x.T @ residual / BATCH_SIZE + 0.2 * weight
            warmup_steps = max(1, round(0.1 * total))
            factor = (
                (step + 1) / warmup_steps
                if step < warmup_steps
                else 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total - warmup_steps)))
            )
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = beta2 * second + (1 - beta2) * gradient**2
            weight = weight * (1 - factor * rate * weight_decay)
            corrected = first / (1 - 0.9**step), np.sqrt(second / (1 - beta2**step))
            weight = weight - factor * rate * corrected[0] / (corrected[1] + 1e-8)
        means.append(float(np.mean(losses)))
    return weight, means


def run_fit(batches: Batches, epochs: int = 1, rate: float = 0.1, weight_decay: float = 0.0, **options):
    learner, reports = Regression(), list[Progress]()
    settings = FitSettings("codes", epochs, rate, weight_decay, **options)
    history = fit(learner, batches, settings, reports.append)
    return learner, history, reports


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("epochs", [1, 7])
def test_weights_and_losses_equal_those_of_a_plain_loop(batches, epochs, weight_decay):
    learner, history, _ = run_fit(batches, epochs, weight_decay=weight_decay)
    weight, means = train_in_numpy(batches, epochs * STEPS_PER_EPOCH, 0.1, weight_decay)
    np.testing.assert_allclose(learner.weight.detach(), weight, rtol=1e-10)
    np.testing.assert_allclose([sum(record.losses.values()) for record in history], means, rtol=1e-10)


def test_beta2_is_passed_to_the_optimizer(batches):
    learner, _, _ = run_fit(batches, epochs=3, beta2=0.9)
    np.testing.assert_allclose(
        learner.weight.detach(), train_in_numpy(batches, 9, 0.1, beta2=0.9)[0], rtol=1e-10
    )


BUDGETS = {
    "a part of the first epoch": (8, [2]),
    "one whole epoch": (12, [3]),
    "only whole batches": (23, [3, 2]),
    "several epochs and a part": (28, [3, 3, 1]),
    "less than a batch": (3, [1]),
}
"""Number of images, and the number of steps of each epoch with batches of 4."""


@pytest.mark.parametrize(("images", "steps"), BUDGETS.values(), ids=BUDGETS)
def test_a_budget_of_images_ends_training_at_the_end_of_the_schedule(batches, images, steps):
    learner, history, reports = run_fit(batches, epochs=50, images=images)
    weight, means = train_in_numpy(batches, sum(steps), 0.1)
    np.testing.assert_allclose(learner.weight.detach(), weight, rtol=1e-10)
    np.testing.assert_allclose([sum(record.losses.values()) for record in history], means, rtol=1e-10)
    assert learner.modes == [True] * sum(steps)
    assert [(r.epoch, r.epochs, r.step, r.steps) for r in history] == [
        (epoch, len(steps), count, count) for epoch, count in enumerate(steps, start=1)
    ]
    assert [r.images for r in history] == [BATCH_SIZE * count for count in np.cumsum(steps)]
    assert [r for r in reports if r.epoch_ended] == history


def test_only_the_last_report_of_a_partial_epoch_is_marked_as_its_end(batches, monkeypatch):
    monkeypatch.setattr(loss_meter, "REPORT_INTERVAL_S", -1.0)
    _, history, reports = run_fit(batches, images=20)
    assert [(r.epoch, r.step) for r in reports] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]
    assert [r for r in reports if r.epoch_ended] == history


def test_frozen_parameters_stay_unchanged(batches):
    learner, _, _ = run_fit(batches, weight_decay=0.5)
    assert torch.equal(learner.frozen, torch.ones(3, dtype=torch.float64))


def test_the_learner_is_in_training_mode_and_afterwards_in_eval_mode(batches):
    learner, _, _ = run_fit(batches)
    assert learner.modes == [True] * STEPS_PER_EPOCH
    assert not learner.training


def test_the_history_has_one_record_per_epoch(batches):
    _, history, reports = run_fit(batches, epochs=2)
    assert [record.epoch for record in history] == [1, 2]
    assert all(record.epoch_ended and record.step == record.steps == STEPS_PER_EPOCH for record in history)
    assert [record.images for record in history] == [
        BATCH_SIZE * STEPS_PER_EPOCH,
        2 * BATCH_SIZE * STEPS_PER_EPOCH,
    ]
    assert all(record.stage == "codes" and set(record.losses) == {"fit", "size"} for record in history)
    assert history[0].seconds <= history[1].seconds
    assert reports == history


def test_progress_is_reported_within_an_epoch_at_intervals(batches, monkeypatch):
    monkeypatch.setattr(loss_meter, "REPORT_INTERVAL_S", -1.0)
    _, history, reports = run_fit(batches, epochs=2)
    assert [(r.epoch, r.step) for r in reports] == [(e, s) for e in (1, 2) for s in (1, 2, 3)]
    assert [r for r in reports if r.epoch_ended] == history


def test_other_ranks_than_zero_report_only_the_ends_of_epochs(batches, monkeypatch):
    monkeypatch.setattr(loss_meter, "REPORT_INTERVAL_S", 0.0)
    monkeypatch.setattr(loss_meter, "rank", lambda: 1)
    _, history, reports = run_fit(batches, epochs=2)
    assert [(r.epoch, r.step) for r in reports] == [(1, 3), (2, 3)]
    assert reports == history


def test_a_loss_that_is_not_finite_raises_an_error(batches):
    learner = Regression()
    with torch.no_grad():
        learner.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"stage codes, epoch 1: .*learning_rate"):
        fit(learner, batches, FitSettings("codes", 1, 0.1), lambda progress: None)


@pytest.mark.parametrize("total_steps", [1, 2, 10, 1000])
def test_the_learning_rate_rises_to_its_peak_and_falls(total_steps):
    factors = [learning_rate_factor(step, total_steps) for step in range(total_steps)]
    peak = int(np.argmax(factors))
    assert max(factors) == 1
    assert min(factors) > 0
    assert peak <= max(1, 0.1 * total_steps)
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


class Killed(Exception):
    """Represent the death of a process."""


@pytest.mark.parametrize("last_epoch", [1, 2, 4])
def test_resumed_training_gives_the_same_weights_as_uninterrupted_training(batches, tmp_path, last_epoch):
    uninterrupted, history, _ = run_fit(batches, epochs=5, weight_decay=0.1)
    learner, checkpoint = Regression(), tmp_path / "fit.epoch"
    settings = FitSettings("codes", 5, 0.1, 0.1, checkpoint=checkpoint)

    def raise_killed(progress: Progress) -> None:
        if progress.epoch == last_epoch + 1:
            raise Killed

    with pytest.raises(Killed):
        fit(learner, batches, settings, raise_killed)
    reports: list[Progress] = []
    resumed_learner = Regression()
    resumed = fit(resumed_learner, batches, settings, reports.append)
    assert torch.equal(resumed_learner.weight, uninterrupted.weight)
    assert [r.losses for r in resumed] == [r.losses for r in history]
    assert [r.epoch for r in reports if r.epoch_ended] == list(range(last_epoch + 1, 6))
    assert resumed[-1].seconds >= resumed[last_epoch - 1].seconds


def test_a_damaged_checkpoint_is_refused_and_the_message_names_it(batches, tmp_path):
    checkpoint = tmp_path / "fit.epoch"
    run_fit(batches, epochs=2, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        InputError, match=r"fit.epoch cannot be used .* Delete it, and the stage starts from its first epoch"
    ):
        run_fit(batches, epochs=2, checkpoint=checkpoint)


def test_seconds_of_reading_batches_are_counted_apart(batches, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Batches):
        def epoch(self, epoch):
            for batch in super().epoch(epoch):
                now[0] += 2.0  # reading
                yield batch

    class Computing(Regression):
        def forward(self, batch):
            now[0] += 5.0
            return super().forward(batch)

    slow = Slow(batches.store, batches.columns, BATCH_SIZE, seed=5)
    settings = FitSettings("test", 2, learning_rate=0.1)
    history = fit(Computing(), slow, settings, lambda _: None)
    assert [record.waited for record in history] == [2.0 * STEPS_PER_EPOCH, 2 * 2.0 * STEPS_PER_EPOCH]
    assert [record.seconds for record in history] == [7.0 * STEPS_PER_EPOCH, 2 * 7.0 * STEPS_PER_EPOCH]
