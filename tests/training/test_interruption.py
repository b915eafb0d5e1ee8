"""Test that training which is saved in the middle of an epoch goes on as if it had not stopped."""

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ka_ray.training import Batches, FitSettings, fit
from ka_ray.training.interruption import CHECK_S, PAUSE_S, NoticeWatcher, ask_for_notice

# An import statement would find the function `fit`, which has the name of its module.
FIT_MODULE = importlib.import_module("ka_ray.training.fit")
STEPS = 6


class WithDropout(nn.Module):
    """A learner whose result depends on random numbers, on buffers and on the order of the batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"fit": (self.network(batch["x"])[:, 0] - batch["y"]).square().mean()}


class Gone(Exception):
    """The machine is taken away."""


@pytest.fixture
def batches(make_store) -> Batches:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4 * STEPS, 3)), rng.normal(size=4 * STEPS)
    columns = {"image_id": np.arange(4 * STEPS), "x": x.astype(np.float32), "y": y.astype(np.float32)}
    return Batches(make_store(columns), ["x", "y"], 4, seed=5)


@pytest.fixture(autouse=True)
def _no_notice_afterwards() -> Iterator[None]:
    yield
    ask_for_notice(None)


def train(batches: Batches, checkpoint, learner: nn.Module | None = None):
    learner = (learner or WithDropout()).to(batches.device)
    settings = FitSettings("joint", epochs=3, learning_rate=0.05, checkpoint=checkpoint)
    return learner, fit(learner, batches, settings, lambda progress: None)


on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_a_gpu)])
@pytest.mark.parametrize("told_after", [1, 3, STEPS, STEPS + 2, 3 * STEPS - 1])
def test_training_saved_at_a_notice_goes_on_there_with_the_same_result(
    batches, tmp_path, monkeypatch, told_after, device
):
    batches.device = torch.device(device)
    expected, history = train(batches, None)
    monkeypatch.setattr("ka_ray.training.interruption.CHECK_S", 0.0)  # asks after every step
    asked: list[int] = []

    def ask() -> bool:
        asked.append(1)
        return len(asked) == told_after

    save = FIT_MODULE.save_training_state

    def save_and_go(*arguments) -> None:
        save(*arguments)
        if arguments[-1] is not None:  # in the middle of an epoch
            raise Gone

    monkeypatch.setattr(FIT_MODULE, "save_training_state", save_and_go)
    ask_for_notice(ask)
    with pytest.raises(Gone):
        train(batches, tmp_path / "joint.epoch")
    ask_for_notice(None)
    monkeypatch.setattr(FIT_MODULE, "save_training_state", save)

    steps: list[int] = []
    learner = WithDropout()
    learner.register_forward_hook(lambda *_: steps.append(1))
    torch.manual_seed(99)  # the new process begins with other random numbers
    found, resumed = train(batches, tmp_path / "joint.epoch", learner)
    assert len(steps) == 3 * STEPS - told_after
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    for one, other in zip(resumed, history, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-6)


def test_training_that_goes_on_after_a_notice_is_not_changed_by_it(batches, tmp_path, monkeypatch):
    expected, _ = train(batches, None)
    monkeypatch.setattr("ka_ray.training.interruption.PAUSE_S", 0.0)
    monkeypatch.setattr("ka_ray.training.interruption.CHECK_S", 0.0)
    ask_for_notice(lambda: True)
    found, _ = train(batches, tmp_path / "joint.epoch")
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_without_a_way_to_ask_nothing_is_asked():
    watcher = NoticeWatcher()
    assert not any(watcher.step_ended() for _ in range(1000))


@pytest.mark.parametrize("seconds_per_step", [0.1, 1.0, 20.0])
def test_a_notice_is_asked_for_every_few_seconds_and_more_rarely_after_one(seconds_per_step):
    now, asked, told = 0.0, list[float](), False

    def ask() -> bool:
        asked.append(now)
        return told

    ask_for_notice(ask)
    watcher = NoticeWatcher(lambda: now)
    for _ in range(1000):
        now += seconds_per_step
        assert not watcher.step_ended()
    gaps = np.diff(asked)[2:]  # the first ones grow
    assert gaps == pytest.approx(max(CHECK_S, seconds_per_step), rel=0.5)
    told = True
    now += seconds_per_step
    while not watcher.step_ended():
        now += seconds_per_step
    first = asked[-1]
    told = False
    while asked[-1] == first:
        now += seconds_per_step
        watcher.step_ended()
    assert asked[-1] - first == pytest.approx(max(PAUSE_S, seconds_per_step), rel=0.5)
